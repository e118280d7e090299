"""Read and scale the activation of every unit, layer by layer, while a model runs.

A plan says for each layer that writes an axis where one unit's activation passes: the output of the layer's own norm,
or for attention heads the input of the next layer. `Gates` hooks those places.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from mvp.plan import Plan, prunable, units
from zoo.errors import OptionError, PlanError

Key = tuple[str, str]


@dataclass
class _Gate:
    """One axis at one layer: which unit each entry of the hooked dimension belongs to (n: none).

    A twin stands at the same place as an earlier gate of its axis (queries, keys and values, or the two layers of a
    gated MLP, meet where the next layer takes them in): a unit is scaled there once.
    """

    key: Key
    dim: int
    relu: bool
    owner: torch.Tensor
    entries: torch.Tensor
    twin: bool


class Gates:
    """Hooks on a model's gates; use as a context manager.

    ```python
    with Gates(model, plan) as gates:
        model(x).sum().backward()
    gates.activations()["a0"]["conv1"]     # float64, shape (n,)
    gates.scales["a0", "conv1"].grad       # dL/dgate, shape (n,)
    ```

    Args:
        model: A model with this plan (the full one, or a slim one with its narrowed plan), on any device.
        plan: Its plan.
        axes: Axes to hook; default all prunable ones.
        scales: Multiply a leaf of ones into every gate. It gets dL/dgate by `backward`; filled with zeros and ones it
            is a mask of that layer alone. Entries of `scales` may be replaced by other tensors: of shape (n,), one of
            them shared by several layers, or of shape (batch, n), a gate for each image.
        activations: Accumulate activations.
        order: 1 for the mean absolute activation, 2 for the root mean square.

    Attributes:
        scales: {(axis, layer): Parameter of ones, shape (n,), or what replaced it}; empty without `scales`.

    Raises:
        PlanError: The model lacks a module that the plan names.
        OptionError: order is neither 1 nor 2.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        axes: Iterable[str] | None = None,
        *,
        scales: bool = True,
        activations: bool = True,
        order: int = 1,
    ) -> None:
        if order not in (1, 2):
            raise OptionError("order of the activation norm", got=order, expected="1 or 2")
        self.scales: dict[Key, torch.Tensor] = {}
        self._modules = dict(model.named_modules())
        self._order, self._accumulate = order, activations
        self._handles: list[Any] = []
        self._sums: dict[Key, torch.Tensor] = {}
        self._counts: dict[Key, int] = defaultdict(int)
        self._gates: dict[tuple[str, str], list[_Gate]] = defaultdict(list)
        reference = next(model.parameters())
        for axis in prunable(plan) if axes is None else axes:
            n = plan["axes"][axis]["n"]
            first: dict[str, Key] = {}
            for writer in plan["axes"][axis]["writers"]:
                if writer["gate"] not in self._modules:
                    raise PlanError("the plan names a module that the model lacks", got=writer["gate"])
                owner = torch.from_numpy(units(plan, writer["expr"], axis))
                owner = torch.where(owner < 0, n, owner).to(reference.device)
                entries = torch.bincount(owner, minlength=n + 1)[:n]
                key = (axis, writer["layer"])
                place = first.setdefault(repr([writer["gate"], writer["side"], writer["expr"]]), key)
                gate = _Gate(key, writer["dim"], writer["relu"], owner, entries, twin=place != key)
                self._gates[writer["gate"], writer["side"]].append(gate)
                if scales:
                    ones = torch.ones(n, device=reference.device, dtype=reference.dtype)
                    self.scales[key] = self.scales[place] if gate.twin else nn.Parameter(ones)

    def __enter__(self) -> "Gates":
        for (name, side), gates in self._gates.items():
            module = self._modules[name]
            if side == "input":
                hook = module.register_forward_pre_hook(lambda m, args, g=gates: (self._pass(args[0], g), *args[1:]))
            else:
                hook = module.register_forward_hook(lambda m, args, out, g=gates: self._pass(out, g))
            self._handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _pass(self, x: torch.Tensor, gates: list[_Gate]) -> torch.Tensor:
        if self._accumulate:
            for gate in gates:
                self._add(x.detach(), gate)
        for gate in gates:
            if gate.key in self.scales and not gate.twin:
                scale = self.scales[gate.key]
                each = torch.cat([scale, scale.new_ones(*scale.shape[:-1], 1)], -1)[..., gate.owner].to(x.dtype)
                if each.ndim == 2 and len(each) != len(x):
                    # Windowed attention folds each image's windows, side by side, into the batch.
                    each = each.repeat_interleave(len(x) // len(each), 0)
                own = [-1 if d == gate.dim % x.ndim else 1 for d in range(x.ndim)]
                x = x * each.view([len(each), *own[1:]] if each.ndim == 2 else own)
        return x

    def _add(self, x: torch.Tensor, gate: _Gate) -> None:
        """Add up |activation|^order over images, positions and the entries of each unit."""
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        x = x.relu() if gate.relu else x.abs()
        x = x.square() if self._order == 2 else x
        dim = gate.dim % x.ndim
        others = [d for d in range(x.ndim) if d != dim]
        total = x.sum(others) if others else x
        n = len(gate.entries)
        per_unit = torch.zeros(n + 1, dtype=torch.float64, device=x.device).index_add_(0, gate.owner, total.double())
        self._counts[gate.key] += x.numel() // x.shape[dim]
        self._sums[gate.key] = self._sums[gate.key] + per_unit[:n] if gate.key in self._sums else per_unit[:n]

    def activations(self, *, mean: bool = True) -> dict[str, dict[str, torch.Tensor]]:
        """Mean activation of every unit so far, over images, positions and the unit's own entries.

        Post-ReLU where a ReLU follows, else absolute (Molchanov et al. 2016; order 2: root of the mean square).

        Args:
            mean: False gives norms instead of means: the sum, with order 2 the 2-norm of all that the unit put out.

        Returns:
            {axis: {layer: float64 tensor of shape (n,)}}, for the layers that ran.
        """
        entries = {gate.key: gate.entries for gates in self._gates.values() for gate in gates}
        out: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for (axis, layer), total in self._sums.items():
            value = total / (self._counts[axis, layer] * entries[axis, layer]) if mean else total
            out[axis][layer] = value.sqrt() if self._order == 2 else value
        return dict(out)

    def reset(self) -> None:
        """Forget the accumulated activations and gradients."""
        self._sums.clear()
        self._counts.clear()
        for scale in self.scales.values():
            scale.grad = None
