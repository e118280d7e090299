"""One pinned, verified, de-duplicated state of a zoo."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoo.arrays import ColumnSource, codes, numbers, taken
from zoo.errors import NotFoundError, OptionError

# The order in which an add writes; reading pins the tables in the reverse order, so that no reference dangles.
WRITE_ORDER = ("bases", "tasks", "subnetworks", "scores")
_LETTERS = {"bases": "b", "subnetworks": "c", "scores": "s", "tasks": "t"}
_TOKEN = re.compile(r"b(\d{1,15})-c(\d{1,15})-s(\d{1,15})-t(\d{1,15})")
MIN_PREFIX = 6
KEPT = "_query_rows"  # what a query works out from a snapshot lies there (`zoo.rows`)


def make_token(versions: Mapping[str, int]) -> str:
    """The token of table versions: {"bases": 1, "subnetworks": 40, "scores": 12, "tasks": 9} -> "b1-c40-s12-t9"."""
    return "-".join(f"{letter}{versions[name]}" for name, letter in _LETTERS.items())


def parse_token(token: str) -> dict[str, int]:
    """The table versions that a token names.

    Raises:
        OptionError: It is no token.
    """
    match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if match is None:
        raise OptionError(
            "not a version of a zoo", got=repr(token)[:80], expected="a token such as 'b1-c40-s12-t9' (see `z.version`)"
        )
    return {name: int(number) for name, number in zip(_LETTERS, match.groups())}


@dataclass(eq=False)
class Snapshot:
    """What a zoo holds at one version. Queries and studies are pure functions of it. Not to be changed.

    Attributes:
        token: Names each table's version; `zoo.open(path, version=token)` gives this state again.
        bases, tasks, scores: Arrow tables with the schemas of `zoo.arrow`, verified, ids unique (the earliest row; of
            scores the latest of a source, target, measure and device), ordered by `created_at`, then id.
        subnetworks: The same, its columns read and verified when they are asked for.
        before: An older state whose sub-networks are the first of this one's, to go on from; None when there is none.
    """

    token: str
    bases: pa.Table = field(repr=False)
    tasks: pa.Table = field(repr=False)
    subnetworks: ColumnSource | pa.Table = field(repr=False)
    scores: pa.Table = field(repr=False)
    before: "Snapshot | None" = field(default=None, repr=False)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{id of a sub-network: its row}."""
        table = self.subnetworks
        ids = table["id"].to_pylist() if isinstance(table, pa.Table) else table.ids
        return dict(zip(ids, range(len(ids))))

    def row(self, key: str) -> dict[str, Any]:
        """All fields of the sub-network of a whole id."""
        table, i = self.subnetworks, self.rows[key]
        row: dict[str, Any] = table.slice(i, 1).to_pylist()[0] if isinstance(table, pa.Table) else table.row(i)
        return row

    @cached_property
    def base_rows(self) -> dict[str, int]:
        """{id of a base: its row}."""
        return {key: i for i, key in enumerate(self.bases["id"].to_pylist())}

    def find(self, text: str, *, table: str = "subnetworks") -> str:
        """The whole id that a prefix stands for.

        Args:
            text: An id, or its first characters, at least six.
            table: "subnetworks" or "bases".

        Raises:
            NotFoundError: None has it, several have it, or it is too short.
        """
        known = self.rows if table == "subnetworks" else self.base_rows
        what = "sub-network" if table == "subnetworks" else "base"
        if not isinstance(text, str):
            raise NotFoundError(f"a {what} is asked for by its id", got=repr(text)[:80], expected="text")
        if text in known:
            return text
        if len(text) < MIN_PREFIX:
            raise NotFoundError(
                f"no {what} has this id", got=repr(text), expected=f"at least {MIN_PREFIX} characters of an id"
            )
        found = [key for key in known if key.startswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(
                f"{len(found)} {what}s have ids that begin with {text!r}",
                problems=found[:10],
                hint="Give more characters",
            )
        raise NotFoundError(
            f"no {what} has the id {text[:80]!r}", hint=f"The zoo holds {len(known)}; `z.ids()` lists sub-networks"
        )


def queried(snapshot: Snapshot) -> bool:
    """Whether a query worked out columns from it, which are kept with it."""
    return KEPT in vars(snapshot)


def order(name: str, table: pa.Table) -> pa.Table:
    """Rows in the snapshot's order, one a key: see `Snapshot`.

    Args:
        name: Which table.
        table: All its rows, in any order, an id possibly more than once.
    """
    created = numbers(table["created_at"].cast(pa.int64()), "<i8")
    rows = np.argsort(created, kind="stable")
    if name != "scores" and (np.diff(created[rows]) > 0).all() and len(set(table["id"].to_pylist())) == len(table):
        return taken(table, rows)
    keys = ["source", "target", "measure", "device"] if name == "scores" else ["id"]
    small = table.select(["created_at", *keys]).combine_chunks()
    ranks = pc.sort_indices(small, sort_keys=[("created_at", "ascending"), *((key, "ascending") for key in keys)])
    rows = numbers(ranks, "<u8").astype(np.int64)
    # One number a key, so that equal keys are found without a Python object a row.
    same = np.zeros(len(rows), np.int64)
    for key in keys:
        own, names = codes(small[key])
        same = np.unique(same * len(names) + own, return_inverse=True)[1]
    same = same[rows]
    if name == "scores":
        # A later row also takes the later place.
        chosen = len(rows) - 1 - np.unique(same[::-1], return_index=True)[1]
    else:
        chosen = np.unique(same, return_index=True)[1]
    return taken(table, rows[np.sort(chosen)])
