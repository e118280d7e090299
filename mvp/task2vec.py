"""Task2Vec: a task as the Fisher information of a base's filters.

Source: Achille et al. 2019, "Task2Vec: Task Embedding for Meta-Learning" (ICCV), sec. 2: a new head is fitted on the
frozen features of one probe network, here the base; then

    F = E over images x and labels y ~ p(y | x) of grad log p(y | x) grad log p(y | x)'

with the gradient with respect to the weights below the head; the diagonal of F is averaged over each filter's weights.

The paper is silent about, or leaves open:
- the head: a multinomial logistic regression with an L2 penalty (scikit-learn's, C = 1), which has one optimum, so that
  the embedding depends on no learning rate and no number of epochs;
- the expectation over y: one label an image, drawn from the fitted head's p(y | x) by the seed (the paper's plain
  estimate, not its variational one);
- what a filter is in a linear layer: one of its outputs. Biases, norms and position tokens take no part.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvp.bases import full_model
from mvp.data import Data
from mvp.features import head_inputs, logits_and_features
from mvp.progress import track
from mvp.train import InputSpec, derive_seed, pick_device, place
from zoo.errors import DataError
from zoo.records import Base


def task2vec(base: Base, data: Data, *, seed: int = 0, device: str | None = None, progress: bool = False) -> np.ndarray:
    """The Task2Vec embedding of a task by a base; see the module for the definition and its source.

    Costs one backward pass an image through the whole base; a hundred images or two are enough on a CPU
    (`data.sample`).

    Args:
        base: The probe network.
        data: Images of the task; its training split is used.
        seed: Seed of the drawn labels.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        float32, shape (filters,), 0 or more: the mean squared gradient (nats squared) of each filter, of all
        convolutions and linear layers but the head, in the model's order. `zoo.embedded.task2vec` compares two.

    Raises:
        DataError: The training images are of fewer than two classes.
    """
    run_on, spec = pick_device(device), InputSpec.of(dict(base.input))
    model = place(full_model(base), run_on).eval()
    _, features = logits_and_features(model, base.plan, data.train_images, spec, device=run_on)
    weight, bias = fit_head(features.numpy(), data.train_labels.numpy())
    chances = (features.double() @ weight.T + bias).softmax(1)
    rng = torch.Generator().manual_seed(derive_seed(seed, "task2vec"))
    drawn = torch.multinomial(chances, 1, generator=rng)[:, 0].to(run_on)
    weight, bias = (t.float().to(run_on) for t in (weight, bias))
    probed = []
    for name, parameter in model.named_parameters():
        # The matrices of convolutions and linear layers; those of `nn.MultiheadAttention` are called in_proj_weight.
        wanted = parameter.ndim > 1 and name.endswith("weight") and name not in base.plan["head"]
        parameter.requires_grad_(wanted)
        probed += [parameter] if wanted else []
    total = [torch.zeros(len(p), dtype=torch.float64, device=run_on) for p in probed]
    with head_inputs(model, base.plan) as caught:
        # One image at a time: the square of a batch's gradient is not the sum of its images' squares.
        for i in track(range(len(drawn)), "Task2Vec", progress=progress):
            caught.clear()
            model(spec(data.train_images[i : i + 1].to(run_on)))
            loss = F.cross_entropy(F.linear(caught[0].flatten(1), weight, bias), drawn[i : i + 1])
            gradients = torch.autograd.grad(loss, probed, allow_unused=True)
            for sums, gradient in zip(total, gradients, strict=True):
                if gradient is not None:  # a layer that this model does not use
                    sums += gradient.double().square().flatten(1).mean(1)
    return (torch.cat(total) / len(drawn)).float().cpu().numpy()


def fit_head(features: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Weight (K, d) and bias (K,), float64, of the head that explains the labels best, over the K classes that occur.

    Raises:
        DataError: Fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    if len(classes := np.unique(labels)) < 2:
        raise DataError("task2vec: images of one class", got=f"class {classes.tolist()}", expected="at least two")
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(features.astype(np.float64), labels)
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(classes) == 2:  # scikit-learn has one row then, of the second class's logit over the first one's
        weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
    return weight, bias
