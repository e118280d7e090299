"""Checks that measures on features and labels share."""

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def checked_labels(name: str, labels: npt.ArrayLike, n: int | None = None) -> tuple[Ints, list[str]]:
    """Class numbers as int64 (n,), and what is wrong with them."""
    y = np.asarray(labels)
    problems = []
    if y.ndim != 1 or not y.size:
        problems.append(f"{name}: got shape {y.shape}, expected (n,), n at least 1")
    elif n is not None and len(y) != n:
        problems.append(f"{name}: got {len(y)}, expected {n}, one an image")
    if y.dtype.kind not in "iu":
        problems.append(f"{name}: got dtype {y.dtype}, expected an integer dtype")
    return (y if problems else y.astype(np.int64)), problems


def checked_features(measure: str, features: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[np.ndarray, Ints]:
    """Features in their own float dtype, shape (n, d), and labels int64 (n,).

    Raises:
        DataError: Lists everything about them that does not fit.
    """
    f = np.asarray(features)
    problems = []
    if f.ndim != 2 or not f.size:
        problems.append(f"features: got shape {f.shape}, expected (n, d), n and d at least 1")
    if f.dtype.kind not in "fiu":
        problems.append(f"features: got dtype {f.dtype}, expected a float dtype")
    elif bad := int((~np.isfinite(f)).sum()):
        problems.append(f"features: {bad} of {f.size} values are NaN or infinite")
    y, more = checked_labels("labels", labels, len(f) if f.ndim == 2 else None)
    if problems + more:
        raise DataError(f"{measure}: features and labels cannot be used", problems=problems + more)
    return f, y
