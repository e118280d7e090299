"""H-score: how much of the spread of a network's features is between the classes of a task.

Source: Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer Learning" (ICIP), its
definition of the H-score:

    H(f) = tr(cov(f(X))^-1 cov(E[f(X) | Y]))

The paper is silent about features with a singular covariance (a dead unit, fewer images than features): the
pseudo-inverse is taken here, so that directions without any spread take no part. With U the left singular vectors of
the centred features, H = sum over classes of n_k |mean of U's rows of the class|^2, which is how it is computed.
"""

import numpy as np
import numpy.typing as npt

from zoo.featured import checked_features


def hscore(features: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """H-score of one network's features on one task; see the module for the definition and its source.

    Args:
        features: What the network's classifier takes in, on the task's training images, float (n, d). A direction whose
            spread is within rounding of the features' dtype counts as none.
        labels: Class of each image, int (n,), any values.

    Returns:
        float64 in [0, min(K - 1, d)] for K classes: 0 for features that are constant or a single class, K - 1 where the
        class follows from the features linearly. Larger means more transferable. It does not change when the
        features are mapped linearly one to one. With n <= d it is K - 1 whatever the labels, and says nothing.

    Raises:
        DataError: Shapes or dtypes that do not fit, or values that are not finite; lists all that is wrong.
    """
    f, y = checked_features("hscore", features, labels)
    rounding = float(np.finfo(f.dtype if f.dtype.kind == "f" else np.float64).eps)
    exact = f.astype(np.float64)
    u, s, _ = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    # Relative to the features before centring, whose rounding is what is left of a constant feature.
    u = u[:, s > max(f.shape) * rounding * np.linalg.norm(exact)]
    _, group, counts = np.unique(y, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), u.shape[1]))
    np.add.at(sums, group, u)
    return float(np.clip((sums * sums / counts[:, None]).sum(), 0.0, min(len(counts) - 1, f.shape[1])))
