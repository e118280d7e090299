"""FAISS indexes of unit vectors in half precision: flat, inverted lists or a graph, chosen by recall on the vectors.

An index is built from vectors in memory and never read from a file: FAISS trusts their bytes. Measured, 512 numbers a
vector, one thread: flat half precision takes 4 ms a query at 100,000 vectors and 48 ms at a million, and is built in 2
s; inverted lists (Jegou et al. 2011) take 0.1-0.4 ms and minutes; a graph (HNSW, Malkov & Yashunin 2018) 1-2 ms and ten
times that. Which of them finds the neighbours depends on the vectors, so it is measured on them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FLAT_UP_TO = 100_000  # vectors among which a flat scan is quick enough for any use
SAMPLE = 200  # own vectors that recall is measured with
NEIGHBOURS = 10  # of each of them, itself aside
SEED = 0  # of the sample
LINKS = 32  # of each vector in a graph
POINTS_A_LIST = 64  # vectors that a list's centre is learnt from; FAISS's 256 take four times as long
ROWS_AT_ONCE = 4096  # vectors whose rounding is looked at together


@dataclass(frozen=True)
class Trial:
    """What was measured of one kind and effort.

    Attributes:
        kind: "flat" | "ivf" | "hnsw".
        effort: Lists looked at, or vectors kept in the graph's search; 0 for flat.
        recall: Share of the 10 nearest that are found, in [0, 1]; equally near ones stand for each other.
        query_ms: Milliseconds a query.
        build_s: Seconds to build.
        chosen: Whether it is the one in use.
    """

    kind: str
    effort: int
    recall: float
    query_ms: float
    build_s: float
    chosen: bool = False


class Index:
    """A FAISS index of one kind, by inner product; vectors are numbered 0, 1, ... as they are added.

    Args:
        kind: "flat" | "ivf" | "hnsw".
        units: float32 (n, dim), rows of length 1 to learn from and to hold; for "flat" n may be 0.
    """

    def __init__(self, kind: str, units: Singles) -> None:
        faiss = _faiss()
        self.kind, self.effort = kind, 0
        n, dim = units.shape
        self._coder = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._faiss = self._coder
        if kind == "ivf":
            self._faiss = faiss.index_factory(dim, f"IVF{max(1, int(2 * n**0.5))},SQfp16", faiss.METRIC_INNER_PRODUCT)
            # Residuals would be rounded otherwise than vectors, and `rounding` is of vectors.
            self._faiss.by_residual = False
            self._faiss.cp.max_points_per_centroid = POINTS_A_LIST
            self._faiss.cp.min_points_per_centroid = 1
            self._faiss.train(units)
        elif kind == "hnsw":
            self._faiss = faiss.index_factory(dim, f"HNSW{LINKS}_SQfp16", faiss.METRIC_INNER_PRODUCT)
        #: Largest distance of a held vector from its half precision form.
        self.rounding = 0.0
        self.add(units)

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    @property
    def efforts(self) -> list[int]:
        """Efforts worth trying, ascending."""
        if self.kind == "ivf":
            return [2**i for i in range(2, 20) if 2**i <= max(4, self._faiss.nlist // 4)]
        return [2**i for i in range(5, 10)] if self.kind == "hnsw" else [0]

    def add(self, units: Singles) -> None:
        """Append vectors, float32 (m, dim), rows of length 1."""
        for start in range(0, len(units), ROWS_AT_ONCE):
            part = np.ascontiguousarray(units[start : start + ROWS_AT_ONCE])
            error = self._coder.sa_decode(self._coder.sa_encode(part)) - part
            self.rounding = max(self.rounding, float(np.sqrt((error * error).sum(axis=1).max())))
        self._faiss.add(np.ascontiguousarray(units))

    def clear(self) -> None:
        """Forget the vectors, not what was learnt from them."""
        self._faiss.reset()
        self.rounding = 0.0

    def nearest(
        self, units: Singles, k: int, allowed: Bools | None = None, *, exact: bool = False
    ) -> tuple[Singles, Ints]:
        """The k vectors with the largest inner product with each query.

        Args:
            units: float32 (m, dim).
            k: At least 1.
            allowed: bool (n,): only these; None = all.
            exact: Compare with every allowed vector, whatever the kind.

        Returns:
            Inner products float32 (m, k), falling, and numbers int64 (m, k); -1 where fewer were found.
        """
        faiss = _faiss()
        index, options = self._faiss, dict[str, Any]()
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        if bits is not None:
            options["sel"] = faiss.IDSelectorBitmap(bits)
        if self.kind == "ivf":
            wanted = faiss.SearchParametersIVF(nprobe=index.nlist if exact else self.effort, **options)
        elif self.kind == "hnsw" and not exact:
            wanted = faiss.SearchParametersHNSW(efSearch=max(self.effort, k), **options)
        else:
            wanted = faiss.SearchParameters(**options)
            if self.kind == "hnsw":
                index = faiss.downcast_index(index.storage)
        scores, found = index.search(np.ascontiguousarray(units), k, params=wanted)
        return scores, found.astype(np.int64)


def choose(units: Singles, recall: float) -> tuple[Index, list[Trial]]:
    """The quickest index to build that reaches a recall on the vectors themselves and is quicker to ask than flat.

    Inverted lists are tried first, at growing effort, then a graph; when neither will do, flat it is.

    Args:
        units: float32 (n, dim), rows of length 1, n > 10.
        recall: Wanted share of the 10 nearest, in (0, 1].

    Returns:
        The index, and what was measured, the chosen one marked.
    """
    queries = np.random.default_rng(SEED).choice(len(units), min(SAMPLE, len(units)), replace=False)
    started = time.perf_counter()
    flat = Index("flat", units)
    built = time.perf_counter() - started
    started = time.perf_counter()
    scores, found = flat.nearest(units[queries], NEIGHBOURS + 1)
    flat_ms = 1000 * (time.perf_counter() - started) / len(queries)
    truth = _others(scores, found, queries)[:, NEIGHBOURS - 1]
    trials = [Trial("flat", 0, 1.0, flat_ms, built)]
    for index, trial in _trials(units, queries, truth):
        trials.append(trial)
        if trial.recall >= recall and trial.query_ms < flat_ms:
            index.effort, trials[-1] = trial.effort, replace(trial, chosen=True)
            return index, trials
    trials[0] = replace(trials[0], chosen=True)
    return flat, trials


def _trials(units: Singles, queries: Ints, truth: Singles) -> Iterator[tuple[Index, Trial]]:
    # Float32 sums of the same numbers in another order: no nearer, no farther.
    alike = 4 * units.shape[1] * float(np.finfo(np.float32).eps)
    for kind in ("ivf", "hnsw"):
        started = time.perf_counter()
        index = Index(kind, units)
        built = time.perf_counter() - started
        for effort in index.efforts:
            index.effort = effort
            started = time.perf_counter()
            scores, found = index.nearest(units[queries], NEIGHBOURS + 1)
            query_ms = 1000 * (time.perf_counter() - started) / len(queries)
            near = _others(scores, found, queries)[:, :NEIGHBOURS] >= truth[:, None] - alike
            yield index, Trial(kind, effort, float(near.mean()), query_ms, built)


def _others(scores: Singles, found: Ints, queries: Ints) -> Singles:
    """Inner products of found vectors but the query itself, falling; -inf where nothing was found."""
    without = np.where((found < 0) | (found == queries[:, None]), -np.inf, scores).astype(np.float32)
    return -np.sort(-without, axis=1)


def _faiss() -> Any:
    """The module, imported at the first use; its own types do not know all of its parameters."""
    import faiss

    return faiss
