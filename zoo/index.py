"""Named FAISS spaces over task embeddings: FAISS proposes, the exact cosine decides.

A space is always built from vectors in memory. Index files are never read: FAISS trusts their bytes (a flipped bit
gives wrong neighbours silently, a hostile file corrupts memory), and a flat index of 100,000 vectors is built in 0.1 s.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from zoo import spaces
from zoo.errors import DataError, NotFoundError, OptionError
from zoo.spaces import Bools, Floats, Index, Ints, Trial
from zoo.table import Table

MORE = 64  # proposals beyond k: mostly enough to see that no farther one can be among the k nearest
REBUILD = 0.25  # share of removed vectors beyond which their places are given back

Vectors = Sequence[npt.ArrayLike] | np.ndarray
Allowed = Bools | Collection[str]


class Space:
    """Vectors by id, compared by cosine: add, remove, filter, and find the nearest.

    Up to 100,000 vectors, and beyond when no recall is given, every vector is compared (flat, half precision), and the
    answer is exact. With `recall=`, beyond that, an approximate index is used if one reaches it on the space's own
    vectors (`zoo.spaces.choose`); it is chosen again each time the space has doubled. `about` says what was measured.

    A vector is held twice: as given (float32, or float16 when all are), and with length 1 in half precision.

    Args:
        name: Name of the space ("prototype").
        ids: n ids, without repetition.
        vectors: n vectors of equal length, finite and not zero: FAISS drops NaN rows without a word, and a zero vector
            has no direction.
        recall: Share of the 10 nearest that an approximate answer must hold, in (0, 1); None = exact answers only.

    Raises:
        DataError: Lists the ids whose vectors cannot be used.
        OptionError: recall outside (0, 1).
    """

    def __init__(self, name: str, ids: Sequence[str], vectors: Vectors, *, recall: float | None = None) -> None:
        if recall is not None and not 0 < recall < 1:
            raise OptionError(f"space {name!r}: recall", got=recall, expected="a number in (0, 1), or None for exact")
        self.name, self.recall, self.dim = name, recall, 0
        self._trials: list[Trial] = []
        self._fitted = 0  # size that the kind of index was chosen for, 0 before
        # Places 0, 1, ... of FAISS's numbering: a removed id leaves its place empty until the next rebuild.
        self._places: dict[str, int] = {}
        self._held = np.empty((0, 0), np.float16)
        self._used = 0
        self._index: Index | None = None
        self._order: tuple[tuple[str, ...], Ints] | None = None
        self.add(ids, vectors)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids in the order they were added."""
        return self._ordered()[0]

    @property
    def vectors(self) -> np.ndarray:
        """float32 or float16 (n, dim), in the order of `ids`; a copy once something was removed."""
        if len(self) == self._used:
            return self._held[: self._used]
        return self._held[self._ordered()[1]]

    @property
    def kind(self) -> str:
        """ "flat" (exact), "ivf" or "hnsw" (approximate)."""
        return "flat" if self._index is None else self._index.kind

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add vectors; either all or, with an error, none.

        Takes time in proportion to them, but when the space has doubled beyond 100,000 with `recall=`: then its index
        is chosen anew, which takes minutes.

        Raises:
            DataError: Lists the ids that are there already or come twice, and those whose vectors cannot be used.
        """
        _no_text(ids)
        if len(ids) != len(vectors) or len(set(ids)) != len(ids):
            raise DataError(
                f"space {self.name!r}: one vector an id",
                got=f"{len(ids)} ids ({len(set(ids))} different), {len(vectors)} vectors",
            )
        if not len(ids):
            return
        rows = _rows(vectors)
        dim = self.dim or (rows[0].shape[0] if rows[0].ndim == 1 else 0)
        problems = [f"{id[:12]}: is there already" for id in ids if id in self._places]
        if isinstance(rows, list) or not _all_fine(rows, dim):
            problems += [f"{id[:12]}: {problem}" for id, row in zip(ids, rows) if (problem := _problem(row, dim))]
        if problems:
            raise DataError(f"space {self.name!r}: vectors that cannot be compared", problems=problems)
        if not self.dim:
            self.dim, self._held = dim, np.empty((0, dim), np.float16)
        self._append(ids, np.asarray(rows))
        self._fit()

    def remove(self, ids: Collection[str]) -> None:
        """Remove vectors; either all or, with an error, none. Their places are given back from 25% on.

        Raises:
            NotFoundError: Lists the ids that are not there.
        """
        _no_text(ids)
        unknown = [id for id in ids if id not in self._places]
        if unknown:
            raise NotFoundError(f"space {self.name!r}: ids that are not there", problems=unknown)
        for id in set(ids):
            del self._places[id]
        self._order = None
        if self._used - len(self) > REBUILD * self._used:
            left, places = self._ordered()
            rows = self._held[places]
            self._places, self._used, self._held = {}, 0, rows[:0]
            if self._index is not None:
                self._index.clear()
            self._append(left, rows)

    def propose(self, query: npt.ArrayLike, k: int, allowed: Allowed | None = None) -> Ints:
        """Positions in `ids` of the k nearest by cosine and of those that half precision cannot tell from the k-th.

        They hold them for certain when the space is flat or `allowed` is given; those of an approximate index hold what
        it finds (`about` says how much).

        Args:
            query: float (dim,).
            k: At least 1; more than there are is all.
            allowed: Only these: bool (n,) in the order of `ids`, or a collection of ids, of which unknown ones do not
                matter.

        Returns:
            int64 (m,), ascending; m >= min(k, number allowed).

        Raises:
            DataError: The query has another length, is not finite, or zero.
            OptionError: k below 1, or `allowed` of another length.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise OptionError("index: k is the number of neighbours", got=k, expected="at least 1")
        vector = np.asarray(query, np.float32)
        if problem := _problem(vector, self.dim):
            raise DataError(f"space {self.name!r}: the query cannot be compared: {problem}")
        places = self._ordered()[1]
        mask = None if allowed is None else self._mask(allowed)
        chosen = places if mask is None else places[mask]
        found = self._proposed(vector, int(k), chosen, filtered=mask is not None)
        return np.searchsorted(places, np.sort(found))

    def search(self, query: npt.ArrayLike, k: int, allowed: Allowed | None = None) -> list[tuple[str, float]]:
        """The k nearest (id, cosine) among those allowed, best first, ties by id.

        When the space is flat or `allowed` is given, equal to comparing with every allowed vector in float64. Arguments
        and errors are those of `propose`.
        """
        rows = self.propose(query, k, allowed)
        ids, places = self._ordered()
        scores = cosine(query, self._held[places[rows]])
        ranked = sorted(zip(-scores, (ids[i] for i in rows)))
        return [(id, float(-score)) for score, id in ranked[:k]]

    def about(self) -> Table:
        """The kind in use and what was measured before it was chosen, one line a kind and effort."""
        trials = self._trials or [Trial(self.kind, 0, 1.0, float("nan"), float("nan"), True)]
        wanted = "exact" if self.recall is None else f"recall {self.recall:g} from {spaces.FLAT_UP_TO + 1} vectors on"
        return Table(
            {
                "kind": [t.kind for t in trials],
                "effort": [t.effort for t in trials],
                "recall@10": [t.recall for t in trials],
                "ms a query": [t.query_ms for t in trials],
                "build, s": [t.build_s for t in trials],
                "in use": ["yes" if t.chosen else "" for t in trials],
            },
            f"space {self.name!r}: {len(self)} vectors of {self.dim} numbers, {self._used - len(self)} places empty; "
            f"wanted: {wanted}",
        )

    def _append(self, ids: Sequence[str], rows: np.ndarray) -> None:
        used = self._used + len(rows)
        dtype = np.promote_types(self._held.dtype, rows.dtype)
        if used > len(self._held) or dtype != self._held.dtype:
            # A quarter more than needed, so that adding one at a time does not copy everything each time.
            room = used + used // 4 if self._used else used
            held = np.empty((room, self.dim), dtype)
            held[: self._used] = self._held[: self._used]
            self._held = held
        self._held[self._used : used] = rows
        self._places.update(zip(ids, range(self._used, used)))
        self._used, self._order = used, None
        units = unit(rows).astype(np.float32)
        if self._index is None:
            self._index = Index("flat", units)
        else:
            self._index.add(units)

    def _fit(self) -> None:
        """Choose the kind of index when the space has doubled since it was chosen."""
        if self.recall is None or len(self) <= max(2 * self._fitted, spaces.FLAT_UP_TO):
            return
        left, places = self._ordered()
        # An index numbers vectors without gaps, so empty places go.
        self._held, self._used = self._held[places], len(places)
        self._places, self._order = dict(zip(left, range(len(left)))), None
        self._index, self._trials = spaces.choose(unit(self._held).astype(np.float32), self.recall)
        self._fitted = len(left)

    def _proposed(self, vector: np.ndarray, k: int, chosen: Ints, *, filtered: bool) -> Ints:
        """Places that hold the k nearest of the chosen places."""
        more = k + MORE
        if self._index is None or more >= len(chosen):
            return chosen
        row = unit(vector[None]).astype(np.float32)
        allowed = None
        if len(chosen) < self._used:
            allowed = np.zeros(self._used, bool)
            allowed[chosen] = True
        if self._index.kind != "flat" and not filtered:
            found = self._index.nearest(row, more, allowed)[1][0]
            found = found[found >= 0]
            if len(found) >= k:
                return found
        # Each inner product is off by at most the vector's rounding to half precision (Cauchy-Schwarz, the query has
        # length 1) and by two roundings to float32 of dim products.
        doubt = 2 * 1.001 * self._index.rounding + 4 * (self.dim + 4) * float(np.finfo(np.float32).eps)
        while more < len(chosen):
            scores, found = (part[0] for part in self._index.nearest(row, more, allowed, exact=True))
            if scores[-1] < scores[k - 1] - doubt:
                return found[scores >= scores[k - 1] - doubt]
            more *= 4
        return chosen

    def _mask(self, allowed: Allowed) -> Bools:
        if isinstance(allowed, np.ndarray) and allowed.dtype.kind not in "OU":
            if allowed.dtype != bool or allowed.shape != (len(self),):
                raise OptionError(
                    f"space {self.name!r}: allowed=",
                    got=f"dtype {allowed.dtype}, shape {allowed.shape}",
                    expected=f"bool ({len(self)},), or a collection of ids",
                )
            return allowed
        _no_text(allowed)
        inside = set(allowed)
        return np.array([id in inside for id in self.ids], bool)

    def _ordered(self) -> tuple[tuple[str, ...], Ints]:
        """The ids in the order they were added, and their places, ascending."""
        if self._order is None:
            self._order = tuple(self._places), np.fromiter(self._places.values(), np.int64, len(self._places))
        return self._order


def unit(vectors: npt.ArrayLike) -> Floats:
    """Rows scaled to length 1, in float64."""
    rows = np.asarray(vectors, np.float64)
    # Dividing by the largest entry first keeps squares of tiny and huge values from vanishing or overflowing.
    rows = rows / np.abs(rows).max(axis=-1, keepdims=True)
    return rows / np.sqrt((rows * rows).sum(axis=-1, keepdims=True))


def cosine(query: npt.ArrayLike, vectors: npt.ArrayLike) -> Floats:
    """Exact cosine of one vector with the rows of a matrix, float64 (n,), in [-1, 1]."""
    rows = np.asarray(vectors, np.float64)
    if not len(rows):
        return np.empty(0)
    # Summed row by row, so that a value does not depend on which other rows are there (a BLAS product's does).
    return np.clip((unit(rows) * unit(query)).sum(axis=-1), -1.0, 1.0)


def _no_text(ids: Collection[str]) -> None:
    if isinstance(ids, str):
        raise OptionError("ids are one collection of ids", got=repr(ids), hint=f"Write [{ids!r}]")


def _rows(vectors: Vectors) -> np.ndarray | list[np.ndarray]:
    """Vectors in the type they are held in; as one matrix where they have one length."""
    if isinstance(vectors, np.ndarray) and vectors.ndim == 2:
        return vectors if vectors.dtype == np.float16 else np.asarray(vectors, np.float32)
    rows = [a if a.dtype == np.float16 else np.asarray(a, np.float32) for a in map(np.asarray, vectors)]
    return np.stack(rows) if len({row.shape for row in rows}) == 1 and rows[0].ndim == 1 else rows


def _all_fine(rows: np.ndarray, dim: int) -> bool:
    """Whether `_problem` would find nothing in any row, at the speed of numpy."""
    return rows.shape[1] == dim > 0 and bool(np.isfinite(rows).all() and rows.any(axis=1).all())


def _problem(vector: np.ndarray, dim: int) -> str | None:
    if vector.ndim != 1 or len(vector) != dim or not dim:
        return f"shape {vector.shape}, expected ({dim},)"
    if not np.isfinite(vector).all():
        return "holds NaN or infinite values"
    return None if vector.any() else "is zero everywhere"
