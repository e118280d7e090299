"""LEEP, the Log Expected Empirical Prediction: how well a source model's outputs predict another task's labels.

Source: Nguyen et al. 2020, "LEEP: A new measure to evaluate transferability of learned representations", Eq. 1-2; MVP
(Zhao et al.), sec. 3.2, scores every stored sub-network with it against a target task. MVP leaves open which source
labels a pruned 5-way sub-network has: here Z is its own classes, theta its own softmax in evaluation mode, and the
images are those of the target's training split.

    P(y, z)  = (1/n) sum over i with y_i = y of theta(x_i)_z          P(y|z) = P(y, z) / sum_y P(y, z)
    LEEP     = (1/n) sum_i log sum_z P(y_i|z) theta(x_i)_z

It is directional (source model -> target task), and -H(Y) <= LEEP <= 0 with H(Y) the entropy of the labels in nats, so
that a balanced 5-way task lies in [-1.609, 0].
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FLOOR = 1e-12  # under the logarithm; never reached by rows that sum to 1, whose inner sum is at least 1 / (n Z)
ROW_SUM_TOLERANCE = 1e-3  # softmax in float32 is within 1e-6; half precision outputs and logits are told apart from it


def leep(responses: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """LEEP of one source model on one target task; see the module for the definition and its source.

    Args:
        responses: Softmax outputs of the source model on the target's training images, float (n, Z); rows sum to 1. A
            source class that no image responds to (an all-zero column) takes no part.
        labels: Target labels, int (n,), any values.

    Returns:
        float64 in nats, in [-H(Y), 0]; 0 when there is a single label. Larger means more transferable.

    Raises:
        DataError: Shapes do not fit, nothing given, values not finite, negative, or rows that do not sum to 1.
    """
    theta, y = _checked(responses, labels)
    return float(_leep(theta, y))


def leep_many(responses: Sequence[npt.ArrayLike] | np.ndarray, labels: npt.ArrayLike) -> Floats:
    """LEEP of many source models on one target task, by a compiled loop over each model while it sits in the cache.

    Args:
        responses: M arrays (n, Z_m), as a list (Z may differ) or one array (M, n, Z). float16, float32 and float64 are
            read as they are, without a copy when in C order.
        labels: int (n,).

    Returns:
        float64 (M,), each as `leep` gives it up to the order of summation (about 1e-15).

    Raises:
        DataError: As `leep`; of several models that cannot be scored all are listed.
    """
    y = _checked_labels(labels)
    present, place, counts = np.unique(y, return_inverse=True, return_counts=True)
    raw = np.full(len(responses), np.nan)
    if isinstance(responses, np.ndarray) and responses.ndim == 3 and responses.shape[1] == len(y):
        raw = _sums(responses, place, len(present))
    else:
        for m, given in enumerate(responses):
            theta = np.asarray(given)
            if theta.ndim == 2 and len(theta) == len(y):
                raw[m] = _sums(theta[None], place, len(present))[0]
    values = np.clip(raw, -_entropy(counts), 0.0)
    problems = []
    # The compiled loop only says that something is wrong; `leep` says what, or has the value after all (-0.0 in half
    # precision is no number the loop knows).
    for m in np.flatnonzero(np.isnan(raw)).tolist():
        try:
            values[m] = leep(responses[m], y)
        except DataError as error:
            problems.append(f"model {m}: {error}")
    if problems:
        raise DataError(f"leep: {len(problems)} of {len(raw)} models cannot be scored", problems=problems)
    return values


def leep_by_task(responses: npt.ArrayLike, labels: npt.ArrayLike, tasks: Sequence[Sequence[int]]) -> Floats:
    """LEEP of one source model on many tasks that are subsets of one data set's classes, from one forward pass.

    P(y, z) is a sum over the images of class y alone, so it is computed once a class; only the inner sum depends on the
    task, and is a matrix product of a class's rows with the P(y|.) of all tasks that have the class.

    Args:
        responses: Softmax outputs on all training images of the data set, float (n, Z).
        labels: Class of each image, int (n,).
        tasks: T collections of class numbers; a task's images are those of its classes.

    Returns:
        float64 (T,), each equal to `leep` on the task's rows up to rounding.

    Raises:
        DataError: As `leep`; or a task without classes, with a class twice, or with a class that no image has.
    """
    theta, y = _checked(responses, labels)
    present, index = np.unique(y, return_inverse=True)
    place = {c: i for i, c in enumerate(present.tolist())}
    problems = []
    for t, task in enumerate(tasks):
        absent = [c for c in task if c not in place]
        if absent or not len(task) or len(set(task)) != len(task):
            problems.append(f"task {t}: {f'no images of class {absent}' if absent else f'classes {list(task)}'}")
    if problems:
        raise DataError("leep_by_task: tasks that cannot be scored", expected="distinct classes that have images",
                        problems=problems)  # fmt: skip
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index[order], np.arange(len(present) + 1))
    rows = [theta[order[bounds[c] : bounds[c + 1]]] for c in range(len(present))]
    sums = np.stack([part.sum(axis=0) for part in rows])
    asked: list[list[tuple[int, Floats]]] = [[] for _ in present]
    images = np.zeros(len(tasks))
    for t, task in enumerate(tasks):
        classes = [place[c] for c in task]
        total = sums[classes].sum(axis=0)
        for c in classes:
            asked[c].append((t, np.divide(sums[c], total, out=np.zeros_like(total), where=total > 0)))
            images[t] += len(rows[c])
    logs = np.zeros(len(tasks))
    for part, tasks_of_class in zip(rows, asked):
        if tasks_of_class:
            inner = part @ np.stack([conditional for _, conditional in tasks_of_class], axis=1)
            logs[[t for t, _ in tasks_of_class]] += np.log(np.maximum(inner, FLOOR)).sum(axis=0)
    sizes = [np.array([len(rows[place[c]]) for c in task]) for task in tasks]
    lowest = np.array([-_entropy(size) for size in sizes])
    return np.clip(logs / np.maximum(images, 1), lowest, 0.0)


def label_entropy(labels: npt.ArrayLike) -> float:
    """H(Y) of labels in nats, from their frequencies: -H(Y) is the smallest LEEP there is."""
    return _entropy(np.unique(np.asarray(labels), return_counts=True)[1])


def _entropy(counts: npt.NDArray[np.integer]) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _leep(theta: Floats, labels: Ints) -> float:
    _, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    joint = np.add.reduceat(theta[np.argsort(y, kind="stable")], starts, axis=0)
    total = joint.sum(axis=0)
    used = total > 0
    conditional = joint[:, used] / total[used]
    inner = np.einsum("iz,iz->i", theta[:, used], conditional[y])
    # Rows sum to 1 only up to rounding; the clip keeps the documented range.
    return float(np.clip(np.log(np.maximum(inner, FLOOR)).mean(), -_entropy(counts), 0.0))


def _sums(theta: np.ndarray, place: Ints, classes: int) -> Floats:
    """LEEP of (M, n, Z) responses before the cut to its range, NaN where they are no probabilities."""
    from zoo import kernels

    if theta.dtype.kind not in "fiu" or not theta.size:
        return np.full(len(theta), np.nan)
    if theta.dtype == np.float16:
        raw, wide = np.empty(len(theta)), np.empty((1, *theta.shape[1:]), np.float32)
        for m, model in enumerate(theta):
            kernels.widen(np.ascontiguousarray(model).view(np.uint16), wide)
            raw[m] = kernels.leep_sums(wide, place, classes, FLOOR, ROW_SUM_TOLERANCE)[0]
        return raw
    exact = theta.dtype if theta.dtype in (np.float32, np.float64) else np.float64
    return kernels.leep_sums(np.ascontiguousarray(theta, exact), place, classes, FLOOR, ROW_SUM_TOLERANCE)


def _checked_labels(labels: npt.ArrayLike) -> Ints:
    y = np.asarray(labels)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu":
        raise DataError(
            "leep: labels are class numbers",
            got=f"dtype {y.dtype}, shape {y.shape}",
            expected="an integer dtype, (n,), n at least 1",
        )
    return y.astype(np.int64)


def _checked(responses: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Ints]:
    theta, y = np.asarray(responses), np.asarray(labels)
    if theta.ndim != 2 or y.ndim != 1 or len(theta) != len(y) or not theta.size:
        raise DataError(
            "leep: responses and labels do not fit",
            got=f"shapes {theta.shape} and {y.shape}",
            expected="(n, Z) and (n,), n and Z at least 1",
        )
    y = _checked_labels(y)
    if theta.dtype.kind not in "fiu":
        raise DataError("leep: responses are softmax outputs", got=f"dtype {theta.dtype}", expected="a float dtype")
    theta = theta.astype(np.float64)
    if not np.isfinite(theta).all():
        bad = int((~np.isfinite(theta).all(axis=1)).sum())
        raise DataError(f"leep: {bad} of {len(theta)} responses hold NaN or infinite values")
    worst = float(np.abs(theta.sum(axis=1) - 1).max())
    if theta.min() < 0 or worst > ROW_SUM_TOLERANCE:
        raise DataError(
            "leep: responses are no probabilities",
            got=f"smallest value {theta.min():.3g}, row sums up to {worst:.3g} away from 1",
            expected=f"values >= 0 and rows that sum to 1 within {ROW_SUM_TOLERANCE}",
            hint="Pass softmax outputs, not logits",
        )
    return theta, y
