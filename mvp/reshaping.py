"""Rules of the operations that only move entries: views, slices, concatenation, padding, pooling, indexing.

Importing this module enters them in the table of `mvp.rules`.
"""

from collections.abc import Iterable
from typing import Any

from mvp import layout
from mvp.layout import Axis, Expr, LayoutError
from mvp.rules import Args, Kwargs, Layouts, argument, rule, tensors_in


@rule("view", "_unsafe_view", "reshape", "_reshape_copy", "_reshape_alias")
def _view(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    layouts.set(out, layout.regroup(layouts.get(args[0]), out.shape))


@rule("permute")
def _permute(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    layouts.set(out, [x[i] for i in args[1]])


@rule("t", "transpose", "swapaxes")
def _transpose(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    if len(x) > 1:
        i, j = args[1:3] if len(args) > 2 else (0, 1)
        x[i], x[j] = x[j], x[i]
    layouts.set(out, x)


@rule("unsqueeze")
def _unsqueeze(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    x.insert(args[1] % out.ndim, Axis(1, "unit"))
    layouts.set(out, x)


@rule("squeeze")
def _squeeze(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    chosen = argument(args, kwargs, 1, "dim", range(len(x)))
    dims = {i % len(x) for i in ([chosen] if isinstance(chosen, int) else chosen)}
    layouts.set(out, [e for i, e in enumerate(x) if not (i in dims and args[0].shape[i] == 1)])


@rule("expand", "repeat")
def _expand(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    x = [*(Axis(1, "unit") for _ in range(out.ndim - len(x))), *x]
    dims: list[Expr] = []
    for expr, n in zip(x, out.shape):
        copies, rest = divmod(n, layout.size(expr))
        if rest:
            raise LayoutError("expand to a size that is no multiple")
        dims.append(expr if copies == 1 else layout.product([Axis(copies, "copies"), expr]))
    layouts.set(out, dims)


@rule("select", "unbind")
def _select(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    layout.freeze(x.pop(argument(args, kwargs, 1, "dim", 0)), "single entries are taken")
    for tensor in tensors_in(out):
        layouts.set(tensor, x)


@rule("slice", "narrow")
def _slice(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    d = argument(args, kwargs, 1, "dim", 0) % len(x)
    total, n = args[0].shape[d], out.shape[d]
    start = argument(args, kwargs, 2, "start", 0) or 0
    start = max(start + total, 0) if start < 0 else start
    if n == total:
        layouts.set(out, x)
        return
    if argument(args, kwargs, 4, "step", 1) != 1 or layout.is_frozen(x[d]):
        layout.freeze(x[d], "strided slice")
        x[d] = Axis(n, "slice")
    else:
        _, rest = layout.split(x[d], start)
        x[d], _ = layout.split(rest, n)
    layouts.set(out, x)


@rule("split", "split_with_sizes", "chunk")
def _split(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    d = argument(args, kwargs, 2, "dim", 0) % len(x)
    rest, parts = x[d], []
    for tensor in out:
        part, rest = layout.split(rest, tensor.shape[d])
        parts.append(part)
    if not isinstance(args[1], (list, tuple)):
        # The slim forward computes equal parts from the slim width again, so the parts must shrink alike.
        for tensor, part in zip(out[1:], parts[1:]):
            if tensor.shape[d] == out[0].shape[d]:
                layout.unify(parts[0], part)
    for tensor, part in zip(out, parts):
        layouts.set(tensor, [*x[:d], part, *x[d + 1 :]])


@rule("cat", "stack")
def _cat(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    d = argument(args, kwargs, 1, "dim", 0) % out.ndim
    rows = [layouts.get(t) for t in args[0] if t.numel()]
    if rows and len(rows[0]) < out.ndim:
        rows = [[*row[:d], Axis(1, "unit"), *row[d:]] for row in rows]
    for row in rows[1:]:
        for i, (a, b) in enumerate(zip(rows[0], row)):
            if i != d:
                layout.unify(a, b)
    dims = list(rows[0])
    dims[d] = layout.concat([row[d] for row in rows])
    layouts.set(out, dims)


@rule("constant_pad_nd", "pad")
def _pad(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    pads = args[1]
    for i in range(len(pads) // 2):
        before, after, d = pads[2 * i], pads[2 * i + 1], len(x) - 1 - i
        if before or after:
            if layout.is_frozen(x[d]):
                x[d] = Axis(out.shape[d], "padding")
            elif min(before, after) < 0:
                raise LayoutError("negative padding of a channel dimension")
            else:
                x[d] = layout.concat([Axis(before, "padding"), x[d], Axis(after, "padding")])
    layouts.set(out, x)


@rule("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _mirror(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    for expr, n in zip(layouts.get(args[0]), out.shape):
        if layout.size(expr) != n:
            layout.freeze(expr, "mirrored at the border")
    _pad(layouts, args, kwargs, out)


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices",
      "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "mkldnn_max_pool2d",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
      "_upsample_bilinear2d_aa", "avg_pool2d_with_indices")  # fmt: skip
def _pool(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    for tensor in tensors_in(out):
        dims: list[Expr] = []
        for i, (expr, n) in enumerate(zip(x, tensor.shape)):
            if i >= 2 or layout.size(expr) != n:
                layout.freeze(expr, "pooled")
                expr = Axis(n, "position")
            dims.append(expr)
        layouts.set(tensor, dims)


@rule("flip")
def _flip(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    _move(layouts, args[0], args[1], out)


@rule("roll")
def _roll(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    # Without dimensions the flattened tensor is rolled: every entry moves.
    _move(layouts, args[0], args[2] if len(args) > 2 and args[2] else range(args[0].ndim), out)


def _move(layouts: Layouts, source: Any, dims: Iterable[int], out: Any) -> None:
    x = layouts.get(source)
    for i in dims:
        layout.freeze(x[i], "entries change places")
    layouts.set(out, x)


@rule("index", "index_select")
def _index(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    x = layouts.get(args[0])
    indices = args[1] if isinstance(args[1], (list, tuple)) else [None] * (args[1] % len(x)) + [args[2]]
    where = [i for i, t in enumerate(indices) if t is not None]
    for i in where:
        layout.freeze(x[i], "indexed")
    new = out.ndim - (len(x) - len(where))
    rest = [expr for i, expr in enumerate(x) if i not in where]
    at = where[0] if where == list(range(where[0], where[-1] + 1)) else 0
    layouts.set(out, [*rest[:at], *(Axis(n, "indexed") for n in out.shape[at : at + new]), *rest[at:]])


@rule("embedding")
def _embedding(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    table = layouts.get(args[0])
    layout.freeze(table[0], "indexed")
    layouts.set(out, [*(Axis(n, "indexed") for n in out.shape[:-1]), table[1]])


@rule("arange", "linspace", "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty",
      "empty_like", "zeros_like", "ones_like", "full_like", "rand", "randn", "scalar_tensor")  # fmt: skip
def _create(layouts: Layouts, args: Args, kwargs: Kwargs, out: Any) -> None:
    # zeros(x.shape) follows the widths; a size written as a number does not, which verification finds.
    layouts.fresh(out)
