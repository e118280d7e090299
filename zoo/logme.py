"""LogME, the logarithm of maximum evidence: how well a Bayesian linear model on a network's features explains labels.

Source: You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (ICML), sec. 4. For
each class k a linear model predicts y_k (1 for images of the class, else 0) from the features F (n, d), with a Gaussian
prior of precision alpha on its weights and Gaussian noise of precision beta; the evidence integrates over the weights:

    log p(y_k | F, alpha, beta) = log N(y_k; 0, I / beta + F F' / alpha)
    LogME                       = mean over k of max over alpha, beta of log p(y_k | F, alpha, beta) / n

The paper climbs to the maximum by fixed-point steps (its Alg. 1). Here it is searched directly, and cannot stop early:
in the basis of F's singular vectors the best beta has a closed form once lambda = alpha / beta is given, so that one
number is left to search, on a grid and then by Brent's method. As in the paper, features are neither centred nor
scaled, and no intercept is added.

The paper is silent about labels that the features explain exactly (fewer images than features, above all): the evidence
then has no maximum, or one at noise zero. The noise's variance 1 / beta is at least `LEAST_NOISE` here.
"""

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError
from zoo.featured import Floats, checked_features

LEAST_NOISE = 1e-6  # variance, of labels that are 0 or 1: a standard deviation of 0.001
# lambda as a multiple of the largest eigenvalue of F F'; below the first a weight is free, above the last it is zero.
_GRID = np.logspace(-14, 10, 97)


def logme(features: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """LogME of one network's features on one task; see the module for the definition and its source.

    Args:
        features: What the network's classifier takes in, on the task's training images, float (n, d), any scale.
        labels: Class of each image, int (n,), any values, at least two different ones.

    Returns:
        float64, log density (nats) an image, mean over K classes, in [-(1 + log(2 pi / K)) / 2, 6]: the lower end are
        features that explain nothing of K equally frequent classes, the upper one follows from `LEAST_NOISE`. Larger
        means more transferable. With n <= d it says little: such features explain any labels.

    Raises:
        DataError: Shapes or dtypes that do not fit, values that are not finite, a single class.
    """
    f, y = checked_features("logme", features, labels)
    present = np.unique(y)
    if len(present) < 2:
        raise DataError("logme: labels of a single class", got=f"class {present[0]}", expected="at least two classes")
    u, s, _ = np.linalg.svd(f.astype(np.float64), full_matrices=False)
    eigenvalues = s * s
    return float(np.mean([_max_evidence(eigenvalues, u.T @ t, t @ t, len(y)) for t in _one_hot(y, present)]) / len(y))


def _one_hot(y: npt.NDArray[np.int64], present: npt.NDArray[np.int64]) -> Floats:
    return (y[None, :] == present[:, None]).astype(np.float64)


def _max_evidence(eigenvalues: Floats, along: Floats, total: float, n: int) -> float:
    """Largest log evidence of one target, given its products with the left singular vectors and its squared length."""
    from scipy.optimize import minimize_scalar

    squares = along * along
    outside = max(float(total - squares.sum()), 0.0)  # what no weights explain

    def evidence(lam: Floats) -> Floats:
        spread = 1 + eigenvalues / lam[:, None]
        misfit = (squares / spread).sum(axis=1) + outside
        noise = np.maximum(misfit / n, LEAST_NOISE)  # 1 / beta: the best one for this lambda
        return -0.5 * (n * np.log(2 * np.pi * noise) + np.log(spread).sum(axis=1) + misfit / noise)

    scale = float(eigenvalues[0]) or 1.0
    found = evidence(_GRID * scale)
    best = int(found.argmax())
    low, high = np.log(_GRID[[max(best - 1, 0), min(best + 1, len(_GRID) - 1)]] * scale)
    refined = minimize_scalar(lambda x: -evidence(np.exp([x]))[0], bounds=(low, high), method="bounded")
    return float(max(found[best], -refined.fun))
