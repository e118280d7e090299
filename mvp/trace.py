"""One forward pass under a dispatch mode: which layers ran, on which axes, at what cost, gated where.

`trace` runs the model once and returns a `Trace`; `mvp.canon` turns that into a plan.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mvp.reshaping  # noqa: F401  enters its rules in the table
from mvp import layout, rules
from mvp.layout import Expr, LayoutError
from mvp.rules import Layouts, tensors_in

# Operations after which a tensor is still the layer's own output, entry for entry.
_SAME_ENTRIES = frozenset(
    ["view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze",
     "clone", "contiguous", "alias", "detach", "_to_copy", "dropout", "native_dropout"]
)  # fmt: skip
_RELUS = frozenset(["relu", "relu6", "clamp_min", "threshold"])
_GATES = frozenset(["sigmoid", "hardsigmoid"])
_NORMS = frozenset(["native_group_norm", "native_layer_norm", "_fused_rms_norm"])
# What a rule meets in an operation whose arguments it was not written for.
_MISFITS = (LayoutError, LookupError, TypeError, ValueError, AttributeError)


@dataclass
class Call:
    """One use of a layer: a convolution or matrix product with a parameter.

    Attributes:
        layer: Module path that owns the parameter.
        param: The parameter's name.
        contracted: The parameter's dimension that is summed over (within each group).
        conv: True for convolutions.
        inputs, outputs: Expressions of the channel dimension before and after.
        gate, gate_dim: Module whose output is the layer's normalised output, and its channel dimension (1 or -1).
        relu: The next operation on that output is a ReLU or ReLU6.
        gating: The next operation is a sigmoid: the layer scales channels that others produce (squeeze-excitation).
    """

    layer: str
    param: str
    contracted: int
    conv: bool
    inputs: Expr
    outputs: Expr
    gate: str
    gate_dim: int
    input_dim: int
    relu: bool = False
    gating: bool = False


@dataclass
class Trace:
    """What one forward pass showed."""

    layouts: Layouts
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    calls: list[Call] = field(default_factory=list)
    macs: list[tuple[float, list[Expr]]] = field(default_factory=list)
    groups: list[tuple[str, str, Expr]] = field(default_factory=list)
    views: list[tuple[str, list[Expr]]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.trace = Trace(Layouts(), dict(model.named_modules()), tensors)
        self.stack: list[str] = [""]
        self._alive: list[torch.Tensor] = []
        # Tensor id -> the parameter it is (a view of), and for each of its dimensions the parameter's dimension.
        self._params: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._flow: dict[int, tuple[Call, int]] = {}
        self._norming: dict[str, tuple[Call, int]] = {}
        self._origin: dict[int, frozenset[str]] = {}
        self._feeding: set[str] = set()
        self._new: set[int] = set()
        self._known = {id(tensor) for tensor in tensors.values()}
        for name, tensor in tensors.items():
            self.trace.layouts.fresh(tensor)
            if tensor.ndim > 1:
                self._params[id(tensor)] = (name, tuple(range(tensor.ndim)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        name = name if name.startswith("__") else name.rstrip("_")
        out = func(*args, **kwargs)
        outs, inputs = tensors_in(out), tensors_in((args, kwargs))
        self._alive += [*outs, *inputs]
        if name in ("hardtanh", "clamp") and args[1:] and args[1] == 0:
            name = "relu6" if name == "hardtanh" else "clamp_min"
        try:
            rules.apply(self.trace.layouts, name, args, kwargs, out)
            if name in ("convolution", "_convolution"):
                self._saw_convolution(args, out)
            elif name in ("mm", "addmm", "bmm", "baddbmm"):
                self._saw_product(args[-2:], out)
            elif name == "native_group_norm":
                groups, _ = layout.factor(self.trace.layouts.get(args[0])[1], args[6])
                self.trace.groups.append((self.stack[-1], "num_groups", groups))
            elif name.startswith("_scaled_dot_product"):
                self._saw_attention(args)
            elif name in ("view", "_unsafe_view", "split_with_sizes"):
                self.trace.views += [(self.stack[-1], self.trace.layouts.get(t)) for t in outs]
        except _MISFITS as error:
            reason = f"operation {name}: {error}"
            self.trace.unknown[name] = reason
            for tensor in inputs:
                for dim in self.trace.layouts.get(tensor):
                    layout.freeze(dim, reason)
            for tensor in outs:
                self.trace.layouts.fresh(tensor, reason)
        self._follow(name, args, outs, inputs)
        return out

    def _follow(self, name: str, args: Any, outs: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
        """Carry along which parameter, which layers' output a tensor stands for."""
        if not outs:
            return
        origin = frozenset[str]().union(*(self._origin.get(id(t), frozenset()) for t in inputs))
        for tensor in outs:
            if id(tensor) not in self._new:
                self._origin[id(tensor)] = origin
        if inputs and id(inputs[0]) in self._params and len(inputs) == 1:
            param, dims = self._params[id(inputs[0])]
            if (order := _order(name, args, len(dims))) is not None and outs[0].ndim == len(dims):
                self._params[id(outs[0])] = (param, tuple(dims[i] for i in order))
        for tensor in inputs:
            if id(tensor) in self._flow and id(tensor) not in self._new:
                call, dim = self._flow.pop(id(tensor))
                others = [t for t in inputs if t is not tensor]
                own_bias = name == "add" and bool(others) and all(id(t) in self._known for t in others)
                self._next_operation("alias" if own_bias else name, call, dim, outs[0])
        self._new.clear()

    def _next_operation(self, name: str, call: Call, dim: int, out: torch.Tensor) -> None:
        if name in _RELUS:
            call.relu = True
        elif name in _GATES:
            call.gating = True
        elif "batch_norm" in name or name in _NORMS:
            owner = self.stack[-1]
            if call.gate == call.layer and owner != call.layer and not call.layer.startswith(owner + "."):
                self._norming[owner] = (call, 1 if "layer" not in name and "rms" not in name else -1)
                self._flow[id(out)] = (call, dim)
        elif name in _SAME_ENTRIES:
            dims = self.trace.layouts.get(out)
            for d in (dim, -1, 1):
                if -out.ndim <= d < out.ndim and dims[d] == layout.resolve(call.outputs):
                    self._flow[id(out)] = (call, d)
                    break

    def _new_call(self, call: Call, x: torch.Tensor, out: torch.Tensor) -> None:
        self._feeding |= self._origin.get(id(x), frozenset())
        self._origin[id(out)] = frozenset([call.layer])
        self._new.add(id(out))
        if not any(known.param == call.param for known in self.trace.calls):
            self.trace.calls.append(call)
            self._flow[id(out)] = (call, call.gate_dim)

    def _saw_convolution(self, args: Any, out: torch.Tensor) -> None:
        get = self.trace.layouts.get
        x, w, transposed, groups = get(args[0]), get(args[1]), args[6], args[8]
        positions = (args[0] if transposed else out).shape[2:].numel() * args[1].shape[2:].numel()
        self.trace.macs.append((positions, [x[0], w[0], w[1]]))
        # A weight computed from the parameter (weight standardisation) is its module's.
        param, _ = self._params.get(id(args[1]), (f"{self.stack[-1]}.weight", ()))
        if param not in self.trace.tensors or self.trace.tensors[param].shape != args[1].shape:
            return
        layer = param.rpartition(".")[0]
        if groups > 1:
            self.trace.groups.append((layer, "groups", layout.factor(x[1], groups)[0]))
        into, outof = (0, 1) if transposed else (1, 0)
        self._new_call(Call(layer, param, into, True, x[1], w[outof], layer, 1, 1), args[0], out)

    def _saw_product(self, operands: Any, out: torch.Tensor) -> None:
        get = self.trace.layouts.get
        a, b = get(operands[0]), get(operands[1])
        self.trace.macs.append((1, [*a, b[-1]]))
        if id(operands[1]) in self._params and len(b) == 2:
            param, dims = self._params[id(operands[1])]
            layer = param.rpartition(".")[0]
            self._new_call(Call(layer, param, dims[0], False, b[0], b[1], layer, -1, -1), operands[0], out)
        elif not layout.is_frozen(a[-1]):
            layout.soften(a[-1], "contraction of two activations (q.k)")

    def _saw_attention(self, args: Any) -> None:
        q, k, v = (self.trace.layouts.get(t) for t in args[:3])
        self.trace.macs.append((1, [*q, k[2]]))
        self.trace.macs.append((1, [*q[:3], k[2], v[3]]))

    def entered(self, name: str) -> None:
        self.stack.append(name)

    def left(self, name: str, out: Any) -> None:
        self.stack.pop()
        if name in self._norming:
            call, dim = self._norming.pop(name)
            if isinstance(out, torch.Tensor) and self.trace.layouts.get(out)[dim] == layout.resolve(call.outputs):
                call.gate, call.gate_dim = name, dim

    def finish(self, out: Any) -> Trace:
        heads: set[str] = set()
        for tensor in tensors_in(out):
            for dim in self.trace.layouts.get(tensor):
                layout.freeze(dim, "output")
            heads |= self._origin.get(id(tensor), frozenset())
        # A layer that also feeds others is a backbone's, not a task's: such a model has no head.
        if not heads & self._feeding:
            self.trace.head = [n for n in self.trace.tensors if n.rpartition(".")[0] in heads]
        return self.trace


def _order(name: str, args: Any, ndim: int) -> list[int] | None:
    """Where an operation moves the dimensions of a parameter; None when it does more than move them."""
    order = list(range(ndim))
    if name in ("t", "transpose"):
        i, j = args[1:3] if len(args) > 2 else (0, 1)
        order[i], order[j] = order[j], order[i]
    elif name == "permute":
        order = [d % ndim for d in args[1]]
    elif name not in ("detach", "alias", "clone", "_to_copy", "contiguous"):
        return None
    return order


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without fused fast paths, both restored afterwards, module by module."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in training.items():
            module.training = flag


def trace(model: nn.Module, x: torch.Tensor) -> Trace:
    """Run the model once on x, shape (batch, ...), and record what happened; the model is left as it was."""
    tracer = _Tracer(model)
    tracer.trace.layouts.fresh(x, "input")
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, i, name=name: tracer.entered(name)))
        hooks.append(module.register_forward_hook(lambda m, i, o, name=name: tracer.left(name, o)))
    try:
        with quiet(model), torch.no_grad(), tracer:
            return tracer.finish(model(x))
    finally:
        for hook in hooks:
            hook.remove()
