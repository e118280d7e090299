"""From a trace to a plan: canonical axis numbers, plain JSON.

Axes are numbered in the order in which the forward pass first writes them, so that two traces of one architecture are
equal. Expressions become an int (constant), an axis name, {"prod": [...]} or {"cat": [...]}.
"""

from typing import Any

from mvp import layout
from mvp.layout import Axis, Expr
from mvp.trace import Call, Trace

# The module attributes that a plan may set when a width changes.
HEAD_COUNTS = frozenset(["num_heads", "heads", "n_heads", "nhead", "num_attention_heads"])
WIDTHS = frozenset(
    ["head_dim", "dim_head", "d_head", "key_dim", "val_dim", "value_dim", "attn_dim", "val_attn_dim", "key_attn_dim",
     "inner_dim", "dim_out_attn", "nh_kd", "dh", "d", "channels", "hidden_dim", "hidden_features"]
)  # fmt: skip
ATTRIBUTES = HEAD_COUNTS | WIDTHS | {"groups", "num_groups"}


class _Names:
    """Axis names given out in order of first request."""

    def __init__(self) -> None:
        self.axes: dict[Axis, str] = {}

    def add(self, expr: Expr) -> None:
        for leaf in layout.leaves(expr):
            unknown = leaf.frozen is not None and leaf.frozen.startswith("operation ")
            if leaf.n > 1 and (leaf.frozen is None or unknown):
                self.axes.setdefault(leaf, f"a{len(self.axes)}")

    def expr(self, expr: Expr) -> Any:
        expr = layout.resolve(expr)
        if isinstance(expr, Axis):
            return self.axes.get(expr, expr.n)
        parts = [self.expr(part) for part in expr.parts]
        return layout.size(expr) if all(isinstance(part, int) for part in parts) else {expr.kind: parts}


def compile_plan(trace: Trace, input_size: tuple[int, ...], batch: int) -> dict[str, Any]:
    """The plan of a traced model; `batch` is the number of images that the trace ran."""
    names = _Names()
    for call in trace.calls:
        names.add(call.outputs)
    layers = _writers(trace, names)
    plan: dict[str, Any] = {
        "format": 1,
        "input": list(input_size),
        "axes": _axes(names, layers, _blocks(trace.calls)),
        "params": {},
        "consumers": {},
        "attrs": _attrs(trace, names),
        "macs": _macs(trace, names, batch),
        "head": trace.head,
        "shapes": {},
    }
    for name, tensor in trace.tensors.items():
        exprs = [names.expr(dim) for dim in trace.layouts.get(tensor)]
        if not all(isinstance(expr, int) for expr in exprs):
            plan["params"][name] = exprs
    for call in trace.calls:
        if not isinstance(plan["params"].get(call.param, [0] * 9)[call.contracted], int):
            plan["consumers"][call.param] = call.contracted
    return plan


def _writers(trace: Trace, names: _Names) -> list[tuple[Call, dict[str, Any], list[str]]]:
    """(call, writer record without its axis, axis names) of every layer that writes an axis, in forward order."""
    produced = {
        names.axes[leaf]
        for call in trace.calls
        if not call.gating
        for leaf in layout.leaves(call.outputs)
        if leaf in names.axes
    }
    found: list[tuple[Call, dict[str, Any], list[str]]] = []
    for call in trace.calls:
        written = [names.axes[leaf] for leaf in layout.leaves(call.outputs) if leaf in names.axes]
        # A squeeze-excitation layer scales channels that others produce: it counts only where nothing else does.
        if call.gating:
            written = [axis for axis in written if axis not in produced]
        if not written:
            continue
        record = {
            "layer": call.layer,
            "depth": len(found),
            "expr": names.expr(call.outputs),
            "gate": call.gate,
            "side": "output",
            "dim": call.gate_dim,
            "relu": call.relu,
        }
        found.append((call, record, list(dict.fromkeys(written))))
    return found


def _axes(names: _Names, layers: list[Any], blocks: dict[str, str | None]) -> dict[str, Any]:
    axes: dict[str, Any] = {}
    calls = [call for call, _, _ in layers]
    for leaf, axis in names.axes.items():
        mine = [(call, record) for call, record, written in layers if axis in written]
        bare = all(not call.conv and call.gate == call.layer and not call.relu for call, _ in mine)
        writers = [_gate(leaf, record, call, calls, names, bare=bare) for call, record in mine]
        conv = any(call.conv for call, _ in mine)
        within = {blocks[call.layer] for call, _ in mine}
        soft = sorted(leaf.soft)
        axes[axis] = {
            "n": leaf.n,
            "kind": "head" if leaf.head else "filter" if conv else "node",
            "depth": sum(record["depth"] for _, record in mine) / len(mine),
            "soft": soft,
            "unsupported": leaf.frozen or ("; ".join(soft) or None),
            "block": within.pop() if len(within) == 1 else None,
            "writers": [dict(writer) for writer in writers],
        }
    return axes


def _gate(
    leaf: Axis, record: dict[str, Any], call: Call, calls: list[Call], names: _Names, *, bare: bool
) -> dict[str, Any]:
    """Where the unit's activation is read: behind the layer's own norm, or where the next layer takes it in.

    The latter for a head (its activation is what it hands on, not its queries) and for the nodes of linear layers that
    no norm and no ReLU follows (bare): behind a GELU, a large negative value is a dead node.
    """
    readers = [later for later in calls[calls.index(call) + 1 :] if leaf in layout.leaves(later.inputs)]
    if not readers or not (leaf.head or (bare and len(readers) == 1)):
        return record
    seen = {
        "expr": names.expr(readers[0].inputs),
        "gate": readers[0].layer,
        "side": "input",
        "dim": readers[0].input_dim,
    }
    return {**record, **seen, "relu": False}


def _blocks(calls: list[Call]) -> dict[str, str | None]:
    """Layer -> its block: the innermost numbered ancestor that holds at least two layers."""
    layers = [call.layer for call in calls]
    blocks: dict[str, str | None] = {}
    for layer in layers:
        parts = layer.split(".")
        ancestors = [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
        blocks[layer] = next(
            (a for a in ancestors if a[-1].isdigit() and sum(other.startswith(a + ".") for other in layers) > 1), None
        )
    return blocks


def _attrs(trace: Trace, names: _Names) -> list[list[Any]]:
    modules = trace.modules
    found = [(module, attr, names.expr(expr)) for module, attr, expr in trace.groups]
    for module, dims in trace.views:
        live = [(expr, names.expr(expr)) for expr in dims]
        live = [(expr, plain) for expr, plain in live if not isinstance(plain, int) and not _with_batch(plain)]
        for attr, value in vars(modules[module]).items():
            if attr not in ATTRIBUTES or type(value) is not int:
                continue
            # Equal numbers are told apart by what they count.
            hits = {
                repr(plain): plain
                for expr, plain in live
                if layout.size(expr) == value and _counts_heads(expr) == (attr in HEAD_COUNTS)
            }
            if len(hits) == 1:
                found.append((module, attr, next(iter(hits.values()))))
    unique = {(module, attr): [module, attr, plain] for module, attr, plain in found if not isinstance(plain, int)}
    return list(unique.values())


def _counts_heads(expr: Expr) -> bool:
    return all(leaf.head for leaf in layout.leaves(expr))


def _with_batch(plain: Any) -> bool:
    """A leading constant is the batch folded into a dimension, as batched matrix products do."""
    return isinstance(plain, dict) and "prod" in plain and isinstance(plain["prod"][0], int)


def _macs(trace: Trace, names: _Names, batch: int) -> list[list[Any]]:
    terms: dict[str, list[Any]] = {}
    for coefficient, exprs in trace.macs:
        factors: list[Any] = []
        for plain in map(names.expr, exprs):
            factors.extend(plain["prod"] if isinstance(plain, dict) and "prod" in plain else [plain])
        for constant in (f for f in factors if isinstance(f, int)):
            coefficient *= constant
        variable = [f for f in factors if not isinstance(f, int)]
        term = terms.setdefault(repr(variable), [0, variable])
        term[0] += coefficient
    whole = [[total // batch if total % batch == 0 else total / batch, variable] for total, variable in terms.values()]
    return whole
