"""What each ATen operation does to the axes of its tensors.

One function per family of operations, in the table `RULES` by the operation's name (a trailing underscore, which marks
the in-place variant, is dropped). An operation without an entry is taken as element-wise with broadcasting if its
output has the broadcast shape; otherwise everything that takes part in it is frozen.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from mvp import layout
from mvp.layout import Axis, Expr, LayoutError

Args = Sequence[Any]
Kwargs = dict[str, Any]


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of a nested structure, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Layouts:
    """The expression of every dimension of every tensor seen so far; unseen tensors get fresh axes."""

    def __init__(self) -> None:
        self._dims: dict[int, list[Expr]] = {}
        # An id names a tensor only while the tensor lives.
        self._alive: list[torch.Tensor] = []

    def set(self, tensor: torch.Tensor, dims: Iterable[Expr]) -> None:
        """Record a tensor's expressions; raises LayoutError when their sizes are not the tensor's shape."""
        dims = [layout.resolve(dim) for dim in dims]
        if [layout.size(dim) for dim in dims] != list(tensor.shape):
            raise LayoutError(f"layout {[layout.size(d) for d in dims]} for a tensor of shape {list(tensor.shape)}")
        self._dims[id(tensor)] = dims
        self._alive.append(tensor)

    def fresh(self, tensor: torch.Tensor, frozen: str | None = None) -> None:
        """Give a tensor new axes of its own."""
        self.set(tensor, [Axis(n, frozen) for n in tensor.shape])

    def get(self, tensor: torch.Tensor) -> list[Expr]:
        """A new list with the tensor's expressions, resolved."""
        if id(tensor) not in self._dims:
            self.fresh(tensor)
        return [layout.resolve(dim) for dim in self._dims[id(tensor)]]

    def broadcast(self, out: torch.Tensor, inputs: Iterable[torch.Tensor]) -> None:
        """Element-wise operation: the inputs' dimensions of equal size are one."""
        dims: list[Expr | None] = [None] * out.ndim
        for tensor in inputs:
            for back, expr in enumerate(reversed(self.get(tensor)), start=1):
                if layout.size(expr) != out.shape[-back]:
                    continue
                known = dims[-back]
                if known is None:
                    dims[-back] = expr
                else:
                    layout.unify(known, expr)
        self.set(out, [Axis(n) if dim is None else dim for dim, n in zip(dims, out.shape)])


Rule = Callable[[Layouts, Args, Kwargs, Any], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule under the names of the operations it describes."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def apply(layouts: Layouts, name: str, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Propagate the axes through one operation.

    Raises:
        LayoutError: No rule describes what happened.
    """
    if (found := RULES.get(name)) is not None:
        found(layouts, args, kwargs, out)
        return
    outs, inputs = tensors_in(out), tensors_in((args, kwargs))
    if not outs:
        return
    if not inputs:
        for tensor in outs:
            layouts.fresh(tensor)
        return
    try:
        shape = torch.broadcast_shapes(*[t.shape for t in inputs])
    except RuntimeError as error:
        raise LayoutError(f"no rule for {name}") from error
    if any(tensor.shape != shape for tensor in outs):
        raise LayoutError(f"no rule for {name}")
    for tensor in outs:
        layouts.broadcast(tensor, inputs)


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """An argument that may have been given by position or by name."""
    if len(args) > position:
        return args[position]
    return kwargs.get(name, default)


def _spatial(shape: Iterable[int]) -> list[Expr]:
    return [Axis(n, "position") for n in shape]


@rule("convolution", "_convolution")
def _convolution(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x, w, bias, transposed, groups = layouts.get(args[0]), layouts.get(args[1]), args[2], args[6], args[8]
    if transposed:
        if groups != 1:
            raise LayoutError("grouped transposed convolution")
        layout.unify(x[1], w[0])
        out_channels = w[1]
    elif groups == 1:
        layout.unify(x[1], w[1])
        out_channels = w[0]
    else:
        in_groups, in_each = layout.factor(x[1], groups)
        out_groups, _ = layout.factor(w[0], groups)
        layout.unify(in_groups, out_groups)
        layout.unify(in_each, w[1])
        out_channels = w[0]
    for kernel in w[2:]:
        layout.freeze(kernel, "kernel")
    if bias is not None:
        layout.unify(layouts.get(bias)[0], out_channels)
    layouts.set(out, [x[0], out_channels, *_spatial(out.shape[2:])])


@rule(
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
)
def _batch_norm(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    for tensor in args[1:5]:
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
            layout.unify(layouts.get(tensor)[0], x[1])
    if not any(isinstance(tensor, torch.Tensor) for tensor in args[3:5]):  # statistics of this very input
        for dim in x[2:]:
            layout.soften(dim, "norm over the axis")
    layouts.set(out[0], x)


@rule("native_group_norm")
def _group_norm(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x, groups = layouts.get(args[0]), args[6]
    for tensor in args[1:3]:
        if isinstance(tensor, torch.Tensor):
            layout.unify(layouts.get(tensor)[0], x[1])
    _, within = layout.factor(x[1], groups)
    layout.soften(within, "norm over the axis")
    layouts.set(out[0], layouts.get(args[0]))


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    normed = x[-len(args[1]) :]
    for tensor in args[2:4]:
        if isinstance(tensor, torch.Tensor):
            for a, b in zip(layouts.get(tensor), normed):
                layout.unify(a, b)
    for dim in normed:
        layout.soften(dim, "norm over the axis")
    layouts.set(out[0], x)


@rule("mm", "bmm", "addmm", "baddbmm")
def _matmul(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    added, (left, right) = (None, args[:2]) if len(args) == 2 else (args[0], args[1:3])
    a, b = layouts.get(left), layouts.get(right)
    layout.unify(a[-1], b[-2])
    batch = a[:-2]
    for x, y in zip(batch, b[:-2]):
        layout.unify(x, y)
        layout.mark_heads(x)
    layouts.set(out, [*batch, a[-2], b[-1]])
    if added is not None:
        layouts.broadcast(out, [out, added])


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def _attention(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    q, k, v = (layouts.get(t) for t in args[:3])
    for i in (0, 1):
        layout.unify(q[i], k[i])
        layout.unify(k[i], v[i])
    layout.unify(q[3], k[3])
    layout.unify(k[2], v[2])
    layout.soften(q[3], "contraction of two activations (q.k)")
    layout.mark_heads(q[1])
    layouts.set(out[0], [q[0], q[1], q[2], v[3]])


@rule("mean", "sum", "amax", "amin", "var", "var_mean", "std", "std_mean", "linalg_vector_norm", "norm", "prod",
      "logsumexp", "any", "all", "argmax", "argmin", "max", "min")  # fmt: skip
def _reduce(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    others = tensors_in(args[1:2])
    if others:  # max(a, b) is element-wise
        layouts.broadcast(out, [args[0], *others])
        return
    x = layouts.get(args[0])
    outs = tensors_in(out)
    # The dimensions come first or, in the norms, after the order; a list is never an order.
    listed = [a for a in args[1:] if isinstance(a, (list, tuple))]
    chosen: Any = kwargs["dim"] if "dim" in kwargs else listed[0] if listed else argument(args, kwargs, 1, "dim")
    chosen = chosen if isinstance(chosen, (list, tuple)) else [] if chosen is None else [int(chosen)]
    dims = {i % len(x) for i in chosen or range(len(x))}
    for i in dims:
        layout.soften(x[i], "reduction over the axis")
    for tensor in outs:
        kept = tensor.ndim == len(x)
        layouts.set(tensor, [Axis(1, "unit") if i in dims else e for i, e in enumerate(x) if kept or i not in dims])


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort")
def _along(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    layout.soften(x[argument(args, kwargs, 1, "dim", -1)], "operation along the axis")
    for tensor in tensors_in(out):
        layouts.set(tensor, x)
