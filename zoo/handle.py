"""`Zoo`, the handle that `zoo.open` returns: each call takes one snapshot and passes it on."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import EmptyZooError, OptionError
from zoo.records import Base, Score, SubNetwork, Task
from zoo.store import Store

if TYPE_CHECKING:
    from zoo.snapshot import Snapshot


class Zoo:
    """An open zoo. Made by `zoo.open` and `zoo.sample`.

    Every call looks for a newer version of the zoo, takes one snapshot of it, and works on that one throughout.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def path(self) -> str:
        """Folder or URL of the zoo."""
        return self._store.files.uri

    @property
    def read_only(self) -> bool:
        """Whether this handle refuses to write."""
        return self._store.read_only

    @property
    def version(self) -> str:
        """Token of the current version, such as "b1-c40-s12-t9"; `zoo.open(path, version=token)` gives it again."""
        return self.snapshot().token

    def snapshot(self) -> "Snapshot":
        """The current state as verified Arrow tables; do not change them."""
        return self._store.snapshot()

    def add(self, sub: SubNetwork) -> str:
        """Add a sub-network, with its base and task where new.

        Returns:
            Its id. Adding it again returns the same id and writes nothing.
        """
        return self._store.add([sub])[0]

    def add_many(self, subs: Iterable[SubNetwork]) -> list[str]:
        """Add sub-networks in one commit."""
        return self._store.add(list(subs))

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Add measurements in one commit."""
        return self._store.add_scores(scores)

    def get(self, key: str) -> SubNetwork:
        """A sub-network by its id or a unique prefix."""
        return self._store.get(key)

    def remove(self, key: str) -> str:
        """Remove a sub-network from the newest version."""
        return self._store.remove(key)

    def ids(self) -> list[str]:
        """Ids of all sub-networks, oldest first."""
        return self.snapshot().subnetworks["id"].to_pylist()

    def bases(self) -> list[Base]:
        """All base models, oldest first."""
        return [self._store.base(key) for key in self.snapshot().bases["id"].to_pylist()]

    def __len__(self) -> int:
        return len(self.snapshot().subnetworks)


def open(path: str | os.PathLike[str], *, version: str | None = None, create: bool = True, read_only: bool = False) -> Zoo:
    """Open a zoo."""
    return Zoo(Store(path, version=version, create=create, read_only=read_only))
