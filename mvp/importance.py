"""How much each unit matters, layer by layer: from activations, from gradients of a gate, from weights.

Every function returns {axis: {layer: float64 tensor of shape (n,) on the CPU}}: a score of each unit of the axis in
each layer that writes it. What to do with several layers of one axis (add them, for residual groups) is the caller's.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.data import Data
from mvp.gates import Gates
from mvp.plan import Plan, units
from mvp.train import InputSpec
from zoo.errors import PlanError

Scores = dict[str, dict[str, Tensor]]


def chunks(data: Data, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training split in order, `size` images at a time, as stored (uint8)."""
    for i in range(0, len(data.train_images), size):
        yield data.train_images[i : i + size], data.train_labels[i : i + size]


@torch.no_grad()
def activation(
    model: nn.Module, plan: Plan, axes: Iterable[str], data: Data, spec: InputSpec, where: torch.device, order: int = 1
) -> Scores:
    """Mean activation of each unit over all training images and positions, eval mode (Molchanov et al. 2016).

    Args:
        model: The model, on `where`.
        plan: Its plan.
        axes: Axes to score.
        data: The task.
        spec: The base's input spec.
        where: Device.
        order: 1 for the mean absolute activation (post-ReLU where one follows), 2 for the root mean square.
    """
    model.eval()
    with Gates(model, plan, axes, scales=False, order=order) as gates:
        for x, _ in chunks(data, 500):
            model(spec(x.to(where)))
        return _on_cpu(gates.activations())


def taylor(
    model: nn.Module, plan: Plan, axes: Iterable[str], data: Data, spec: InputSpec, where: torch.device,
    batch_size: int = 128,
) -> Scores:  # fmt: skip
    """(dL/dgate)^2 of a gate of 1 behind each unit, averaged over mini-batches, eval mode (Molchanov et al. 2019)."""
    model.eval()
    axes = list(axes)
    total: Scores = {axis: {} for axis in axes}
    parts = list(chunks(data, batch_size))
    with Gates(model, plan, axes, activations=False) as gates:
        keys = list(gates.scales)
        for x, y in parts:
            loss = F.cross_entropy(model(spec(x.to(where))), y.to(where))
            grads = torch.autograd.grad(loss, [gates.scales[k] for k in keys])
            for (axis, layer), grad in zip(keys, grads, strict=True):
                squared = grad.detach() ** 2 / len(parts)
                total[axis][layer] = total[axis].get(layer, torch.zeros_like(squared)) + squared
    return _on_cpu(total)


def weight_sums(plan: Plan, axes: Iterable[str], elements: Mapping[str, Tensor]) -> Scores:
    """Adds up a number given for each weight over the weights that write a unit (a filter, a node, a head's q, k, v).

    With `elements` = |w| this is the l1 norm of each filter, with w^2 the squared l2 norm, with w dL/dw the first-order
    Taylor term.

    Args:
        plan: The plan of the model.
        axes: Axes to score.
        elements: {"layer.weight": tensor of that parameter's shape} for every layer that writes one of the axes.

    Raises:
        PlanError: A layer's weight is not among `elements`.
    """
    out: Scores = {}
    for axis in axes:
        n, out[axis] = plan["axes"][axis]["n"], {}
        for writer in plan["axes"][axis]["writers"]:
            name = f"{writer['layer']}.weight"
            if name not in elements:
                raise PlanError(f"{axis}: no values for {name}, which writes it")
            tensor = elements[name].detach().double()
            # A layer has one input and one output dimension; the plan names the one that is contracted.
            dim = 1 if plan["consumers"].get(name) == 0 else 0
            owner = torch.from_numpy(units(plan, plan["params"][name][dim], axis)).to(tensor.device)
            per_entry = tensor.sum([d for d in range(tensor.ndim) if d != dim])
            mine = owner >= 0
            total = torch.zeros(n, dtype=torch.float64, device=tensor.device)
            out[axis][writer["layer"]] = total.index_add_(0, owner[mine], per_entry[mine])
    return _on_cpu(out)


def _on_cpu(scores: Mapping[str, Mapping[str, Tensor]]) -> Scores:
    return {axis: {layer: v.double().cpu() for layer, v in layers.items()} for axis, layers in scores.items()}
