"""Named FAISS spaces over task embeddings: FAISS proposes, the exact cosine decides.

A space is always built from vectors in memory. Index files are never read: FAISS trusts their bytes (a flipped bit
gives wrong neighbours silently, a hostile file corrupts memory), and a flat index of 100,000 vectors is built in 0.1 s.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError, OptionError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Space:
    """A flat inner-product index over L2-normalised float32 vectors.

    Args:
        name: Name of the space ("prototype").
        ids: n ids, without repetition.
        vectors: n vectors of equal length, finite and not zero: FAISS drops NaN rows without a word, and a zero vector
            has no direction.

    Raises:
        DataError: Lists the ids whose vectors cannot be used.
    """

    def __init__(self, name: str, ids: Sequence[str], vectors: Sequence[npt.ArrayLike] | np.ndarray) -> None:
        arrays = [np.asarray(v, np.float32) for v in vectors]
        if len(ids) != len(arrays) or len(set(ids)) != len(ids):
            raise DataError(
                f"space {name!r}: one vector an id",
                got=f"{len(ids)} ids ({len(set(ids))} different), {len(arrays)} vectors",
            )
        self.name, self.ids = name, tuple(ids)
        self.dim = len(arrays[0]) if arrays and arrays[0].ndim == 1 else 0
        problems = [f"{id[:12]}: {p}" for id, a in zip(ids, arrays) if (p := self._problem(a))]
        if problems:
            raise DataError(f"space {name!r}: vectors that cannot be compared", problems=problems)
        self.vectors = np.stack(arrays) if arrays else np.empty((0, 0), np.float32)
        self._index = None
        if len(ids):
            import faiss

            self._index = faiss.IndexIDMap(faiss.IndexFlatIP(self.dim))
            self._index.add_with_ids(unit(self.vectors).astype(np.float32), np.arange(len(ids), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def propose(self, query: npt.ArrayLike, k: int) -> Ints:
        """Positions that hold the k nearest by cosine for certain, and those that float32 cannot tell from the k-th.

        Args:
            query: float (dim,).
            k: At least 1; more than there are is all.

        Returns:
            int64 (m,), m >= min(k, n), ascending.

        Raises:
            DataError: The query has another length, is not finite, or zero.
            OptionError: k below 1.
        """
        if k < 1:
            raise OptionError("index: k is the number of neighbours", got=k, expected="at least 1")
        vector = np.asarray(query, np.float32)
        if problem := self._problem(vector):
            raise DataError(f"space {self.name!r}: the query cannot be compared: {problem}")
        if self._index is None or k >= len(self):
            return np.arange(len(self))
        row = unit(vector[None]).astype(np.float32)
        best, _ = self._index.search(row, k)
        # Two roundings of dim products each bound how far FAISS's float32 sums are from the exact cosine.
        doubt = 4 * (self.dim + 4) * float(np.finfo(np.float32).eps)
        _, _, found = self._index.range_search(row, float(best[0, -1]) - doubt)
        return np.sort(np.asarray(found, np.int64))

    def search(self, query: npt.ArrayLike, k: int) -> list[tuple[str, float]]:
        """The k nearest (id, cosine), best first, ties by id; equal to comparing with every vector in float64."""
        rows = self.propose(query, k)
        scores = cosine(query, self.vectors[rows])
        ranked = sorted(zip(-scores, (self.ids[i] for i in rows)))
        return [(id, float(-score)) for score, id in ranked[:k]]

    def _problem(self, vector: np.ndarray) -> str | None:
        if vector.ndim != 1 or len(vector) != self.dim or not self.dim:
            return f"shape {vector.shape}, expected ({self.dim},)"
        if not np.isfinite(vector).all():
            return "holds NaN or infinite values"
        return None if vector.any() else "is zero everywhere"


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
