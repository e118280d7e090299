"""The tables of a zoo: Arrow schemas, records to rows and back, and the checksum that every row carries.

A row of `subnetworks` has three checksums, one a column group ("record", "channels", "measured"), so that a reader that
wants one group need not hash the others; rows of the other tables have one. Each is the SHA-256 of the group's values
together with the row's id, so that groups of two rows cannot be swapped unnoticed.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from zoo.arrays import ragged
from zoo.errors import CorruptionError, RecordError
from zoo.records import FORMAT, Base, Score, SubNetwork, Task, Tensors

_TIME = pa.timestamp("us", "UTC")
_STRINGS = pa.list_(pa.string())

SCHEMAS: dict[str, pa.Schema] = {
    "bases": pa.schema(
        [("id", pa.string()), ("name", pa.string()), ("num_classes", pa.int32()), ("input", pa.string()),
         ("plan", pa.string()), ("info", pa.string()), ("weights_digest", pa.string()), ("format", pa.int32()),
         ("created_at", _TIME), ("checksum", pa.string())]
    ),
    "tasks": pa.schema(
        [("id", pa.string()), ("dataset", pa.string()), ("labels", _STRINGS), ("synsets", _STRINGS),
         ("split", pa.string()), ("seed", pa.int64()), ("format", pa.int32()), ("created_at", _TIME),
         ("checksum", pa.string())]
    ),
    "subnetworks": pa.schema(
        [("id", pa.string()), ("base_id", pa.string()), ("task_id", pa.string()), ("dataset", pa.string()),
         ("labels", _STRINGS), ("synsets", _STRINGS), ("split", pa.string()), ("task_seed", pa.int64()),
         ("kind", pa.string()), ("mode", pa.string()), ("init", pa.string()), ("producer", pa.string()),
         ("keep", pa.float64()), ("options", pa.string()), ("seed", pa.int64()), ("parents", _STRINGS),
         ("generation", pa.int32()), ("channels", pa.map_(pa.string(), pa.list_(pa.int32()))),
         ("removed_blocks", _STRINGS), ("kept_tokens", pa.map_(pa.string(), pa.int32())),
         ("weights_digest", pa.string()), ("metrics", pa.map_(pa.string(), pa.float64())), ("accuracy", pa.float64()),
         ("params", pa.int64()), ("macs", pa.int64()),
         ("embeddings", pa.map_(pa.string(), pa.list_(pa.float32()))), ("format", pa.int32()), ("created_at", _TIME),
         ("checksums", pa.map_(pa.string(), pa.string()))]
    ),
    "scores": pa.schema(
        [("source", pa.string()), ("target", pa.string()), ("measure", pa.string()), ("value", pa.float64()),
         ("vector", pa.list_(pa.float32())), ("device", pa.string()), ("created_at", _TIME), ("checksum", pa.string())]
    ),
}  # fmt: skip

_MEASURED = ("metrics", "accuracy", "params", "macs")
_R = TypeVar("_R", Base, SubNetwork)
_ARRAYS = {"channels": "<i4", "embeddings": "<f4"}


def _digest(table: str, plain: Iterable[Any], arrays: Iterable[tuple[str, np.ndarray]] = ()) -> str:
    """SHA-256 of plain values as JSON followed by named little-endian arrays."""
    pairs = list(arrays)
    head = json.dumps(
        [table, list(plain), [[name, len(values)] for name, values in pairs]], ensure_ascii=True, separators=(",", ":")
    )
    digest = hashlib.sha256(len(head).to_bytes(8, "little") + head.encode())
    for _, values in pairs:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _subnetwork_checksums(row: Mapping[str, Any]) -> dict[str, str]:
    grouped = {*_MEASURED, *_ARRAYS, "checksums"}
    record = [row[name] for name in SCHEMAS["subnetworks"].names if name not in grouped]
    return {
        "record": _digest("subnetworks", record),
        "channels": _digest("subnetworks/channels", [row["id"]], row["channels"]),
        "measured": _digest(
            "subnetworks/measured", [row["id"], *(row[name] for name in _MEASURED)], row["embeddings"]
        ),
    }  # fmt: skip


def _checksum(table: str, row: Mapping[str, Any]) -> str:
    names = [name for name in SCHEMAS[table].names if name not in ("checksum", "vector")]
    vector = [] if row.get("vector") is None else [("vector", row["vector"])]
    return _digest(table, [row[name] for name in names], vector)


def _micros(when: datetime) -> int:
    # A time without a zone is taken as UTC: that is what `created_at` promises.
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    delta = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def base_row(base: Base, created_at: datetime) -> dict[str, Any]:
    """One row of `bases`; the checksum is added by `to_table`."""
    return {
        "id": base.id, "name": base.name, "num_classes": int(base.num_classes),
        "input": _json("input", base.input), "plan": _json("plan", base.plan), "info": _json("info", base.info),
        "weights_digest": base.weights_digest, "format": FORMAT, "created_at": _micros(created_at),
    }  # fmt: skip


def task_row(task: Task, created_at: datetime) -> dict[str, Any]:
    """One row of `tasks`; the checksum is added by `to_table`."""
    return {
        "id": task.id, "dataset": task.dataset, "labels": list(task.labels), "synsets": list(task.synsets or ()),
        "split": task.split, "seed": None if task.seed is None else int(task.seed), "format": FORMAT,
        "created_at": _micros(created_at),
    }  # fmt: skip


def subnetwork_row(sub: SubNetwork) -> dict[str, Any]:
    """One row of `subnetworks`; the checksums are added by `to_table`."""
    # First: what JSON cannot hold has no id either.
    options, task = _json("options", sub.options), sub.task
    return {
        "id": sub.id, "base_id": sub.base.id, "task_id": task.id, "dataset": task.dataset, "labels": list(task.labels),
        "synsets": list(task.synsets or ()), "split": task.split,
        "task_seed": None if task.seed is None else int(task.seed), "kind": sub.kind, "mode": sub.mode,
        "init": sub.init, "producer": sub.producer, "keep": sub.keep, "options": options,
        "seed": int(sub.seed), "parents": list(sub.parents), "generation": int(sub.generation),
        "channels": [(k, np.asarray(v, dtype="<i4")) for k, v in sub.channels.items()],
        "removed_blocks": list(sub.removed_blocks), "kept_tokens": [(k, int(v)) for k, v in sub.kept_tokens.items()],
        "weights_digest": sub.weights_digest, "metrics": list(sub.metrics.items()), "accuracy": sub.accuracy,
        "params": int(sub.params), "macs": int(sub.macs),
        "embeddings": [(k, np.asarray(v, dtype="<f4").reshape(-1)) for k, v in sub.embeddings.items()],
        "format": FORMAT, "created_at": _micros(sub.created_at),
    }  # fmt: skip


def score_row(score: Score, created_at: datetime) -> dict[str, Any]:
    """One row of `scores`; the checksum is added by `to_table`."""
    vector = None if score.vector is None else np.asarray(score.vector, dtype="<f4").reshape(-1)
    return {
        "source": score.source, "target": score.target, "measure": score.measure, "value": float(score.value),
        "vector": vector, "device": score.device, "created_at": _micros(created_at),
    }  # fmt: skip


def _json(name: str, value: Mapping[str, Any]) -> str:
    """JSON text of a mapping that reads back as the same mapping."""
    try:
        # Other keys would come back as strings: another record under the same id, or the same one under another id.
        if not _keys_are_text(value):
            raise TypeError("a key is no string")
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"{name}: holds something that JSON cannot hold", got=error, expected="plain data") from None


def _keys_are_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _keys_are_text(inner) for key, inner in value.items())
    return all(map(_keys_are_text, value)) if isinstance(value, list | tuple) else True


def to_table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table with their checksums.

    Args:
        name: "bases", "tasks", "subnetworks" or "scores".
        rows: What the `*_row` functions return.

    Raises:
        RecordError: A value does not fit its column (an integer beyond 64 bits, text that is not Unicode).
    """
    try:
        if name == "subnetworks":
            sealed = [{**row, "checksums": list(_subnetwork_checksums(row).items())} for row in rows]
        else:
            sealed = [{**row, "checksum": _checksum(name, row)} for row in rows]
        return pa.Table.from_pylist(sealed, schema=SCHEMAS[name])
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError) as error:
        raise RecordError(f"{name}: a value does not fit its column ({error})") from None


def damaged(name: str, table: pa.Table) -> list[str]:
    """Recompute every row's checksum.

    Args:
        name: Which table.
        table: With that table's schema.

    Returns:
        A line for each row that does not have the checksum it was stored with: its id and the damaged column groups.
    """
    lines = []
    for row in _rows(name, table):
        try:
            right = _subnetwork_checksums(row) if name == "subnetworks" else {"checksum": _checksum(name, row)}
        except TypeError:
            right = {"null values": ""}
        found = dict(row["checksums"] or ()) if name == "subnetworks" else {"checksum": row["checksum"]}
        if found != right:
            label = row.get("id") or f"{row.get('source')} on {row.get('target')} by {row.get('measure')}"
            wrong = [group for group, digest in right.items() if found.get(group) != digest]
            lines.append(f"row {label} does not have the checksum it was stored with ({', '.join(wrong)})")
    return lines


def check(name: str, table: pa.Table) -> None:
    """Refuse a table with a damaged row.

    Raises:
        CorruptionError: Lists the table and the ids of the damaged rows.
    """
    if lines := damaged(name, table):
        raise CorruptionError(
            f"{name}: {len(lines)} row(s) are damaged", problems=lines[:20],
            hint="Run `zoo verify PATH`; they were damaged on disk or changed by another program",
        )  # fmt: skip


def _rows(name: str, table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts of plain values, with times in microseconds and array columns as lists of (key, array)."""
    columns: dict[str, list[Any]] = {}
    for column in table.column_names:
        data = table[column]
        if column == "created_at":
            columns[column] = data.cast(pa.int64()).to_pylist()
        elif column in _ARRAYS:
            columns[column] = ragged(data, _ARRAYS[column])
        elif column == "vector":
            columns[column] = [None if v is None else np.asarray(v, dtype="<f4") for v in data.to_pylist()]
        else:
            columns[column] = data.to_pylist()
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def task_of(row: Mapping[str, Any], *, seed: str = "seed") -> Task:
    """The task of a row of `tasks`, or of `subnetworks` with `seed="task_seed"`."""
    return Task(
        labels=tuple(row["labels"]), dataset=row["dataset"], synsets=tuple(row["synsets"]), split=row["split"],
        seed=row[seed],
    )  # fmt: skip


def base_of(row: Mapping[str, Any], weights: Tensors) -> Base:
    """The base of a row of `bases`.

    Raises:
        CorruptionError: The fields do not give the id that the row has.
    """
    try:
        base = Base(
            name=row["name"], num_classes=row["num_classes"], input=json.loads(row["input"]),
            plan=json.loads(row["plan"]), weights=weights, weights_digest=row["weights_digest"],
            info=json.loads(row["info"]),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"bases: row {row['id']} holds something that is no JSON", got=error) from error
    return _same_id(base, row["id"], "base")


def subnetwork_of(row: Mapping[str, Any], base: Base, weights: Tensors, element_masks: Tensors) -> SubNetwork:
    """The sub-network of a row of `subnetworks`.

    Args:
        row: As `table.to_pylist()` gives it.
        base: The base that `base_id` names.
        weights: Named arrays, may be lazy.
        element_masks: Named bool arrays, may be lazy.

    Raises:
        CorruptionError: The fields contradict the base's plan or do not give the id that the row has.
    """
    try:
        sub = SubNetwork(
            task=task_of(row, seed="task_seed"), base=base,
            channels={k: np.asarray(v, dtype=np.int32) for k, v in row["channels"]}, weights=weights,
            producer=row["producer"], keep=row["keep"], kind=row["kind"], mode=row["mode"], init=row["init"],
            options=json.loads(row["options"]), seed=row["seed"], parents=tuple(row["parents"]),
            generation=row["generation"], metrics=dict(row["metrics"]), params=row["params"], macs=row["macs"],
            embeddings={k: np.asarray(v, dtype=np.float32) for k, v in row["embeddings"]},
            removed_blocks=tuple(row["removed_blocks"]), kept_tokens=dict(row["kept_tokens"]),
            element_masks=element_masks, weights_digest=row["weights_digest"],
            created_at=row["created_at"].astimezone(UTC),
        )  # fmt: skip
    # RecordError is a ValueError; the others come from JSON that is not what it was, in this row or in the base's plan.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptionError(f"subnetworks: row {row['id']} contradicts itself or its base", got=error) from error
    return _same_id(sub, row["id"], "sub-network")


def _same_id(record: _R, stored: str, what: str) -> _R:
    if record.id != stored:
        raise CorruptionError(f"{what} {stored} has fields that give another id", got=record.id, expected=stored)
    return record


def scores_equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two score rows hold the same value and vector (nan equals nan)."""
    values = a["value"] == b["value"] or (math.isnan(a["value"]) and math.isnan(b["value"]))
    if (a["vector"] is None) != (b["vector"] is None):
        return False
    return values and (a["vector"] is None or np.array_equal(np.float32(a["vector"]), np.float32(b["vector"])))
