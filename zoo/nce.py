"""NCE, the negative conditional entropy of a task's labels given those that a source model predicts.

Source: Tran et al. 2019, "Transferability and Hardness of Supervised Classification Tasks" (ICCV), sec. 3: for two
label sequences over the same images, z of the source task and y of the target,

    NCE(Y | Z) = sum over y, z of P(y, z) log (P(y, z) / P(z)) = -H(Y | Z),   P(y, z) = share of images with both

In the paper both label sequences are annotations. The images of a new task carry none of the source's, so that z is the
source model's most probable class here, as where Nguyen et al. 2020 compare NCE with LEEP; LEEP takes the whole softmax
output instead.
"""

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError
from zoo.featured import checked_labels


def nce(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """NCE of one source model on one target task; see the module for the definition and its source.

    Args:
        predicted: The source model's class for each training image of the target, int (n,), any values.
        labels: Target labels, int (n,), any values.

    Returns:
        float64 in nats, in [-H(Y), 0] with H(Y) the entropy of the labels; 0 when there is a single label, -H(Y) when
        all predictions agree. Larger means more transferable.

    Raises:
        DataError: Shapes or dtypes that do not fit; lists all that is wrong.
    """
    y, problems = checked_labels("labels", labels)
    z, more = checked_labels("predicted", predicted, len(y) if y.ndim == 1 else None)
    if problems + more:
        raise DataError("nce: predicted classes and labels cannot be used", problems=problems + more)
    source, group = np.unique(z, return_inverse=True)
    _, target = np.unique(y, return_inverse=True)
    joint = np.bincount(target * len(source) + group, minlength=(target.max() + 1) * len(source))
    joint = joint.reshape(-1, len(source))
    both, of_source = joint[joint > 0], np.broadcast_to(joint.sum(axis=0), joint.shape)[joint > 0]
    # A label is never less uncertain than its conditional: the clip only takes off rounding.
    shares = joint.sum(axis=1) / len(y)
    return float(np.clip((both * np.log(both / of_source)).sum() / len(y), (shares * np.log(shares)).sum(), 0.0))
