"""Each rule against the operation itself, run on tensors in which every entry is another number.

An entry of the output carries the number of the entry of the input that it is; so the coordinates that the layout of
the output gives it must be those that the layout of the input gives that entry.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mvp.reshaping  # noqa: F401
from mvp import layout, rules
from mvp.layout import Axis, LayoutError
from mvp.rules import tensors_in

torch.set_num_threads(1)
Place = frozenset[tuple[Axis, int]]
Function = Callable[[Tensor, Tensor], Any]


class Rules(TorchDispatchMode):
    """Applies the rule of every operation that runs; what a rule cannot express raises."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts = rules.Layouts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        rules.apply(self.layouts, func.overloadpacket.__name__, args, kwargs or {}, out)
        return out


def places(expr: layout.Expr) -> list[Place]:
    """Brute force: of each entry of a dimension, {(axis, place on it)}."""
    expr = layout.resolve(expr)
    if isinstance(expr, Axis):
        return [frozenset({(expr, i)}) for i in range(expr.n)]
    if expr.kind == "cat":
        return [place for part in expr.parts for place in places(part)]
    out: list[Place] = [frozenset()]
    for part in expr.parts:
        out = [a | b for a in out for b in places(part)]
    return out


def of_entries(dims: list[layout.Expr]) -> list[Place]:
    """The places of all entries of a tensor, in row-major order."""
    out: list[Place] = [frozenset()]
    for dim in dims:
        out = [a | b for a in out for b in places(dim)]
    return out


# name -> (operation on x and y of shape (2, 6, 4, 4), dimensions of x that are still free afterwards)
CASES: dict[str, tuple[Function, str]] = {
    "flatten": (lambda x, y: x.flatten(1), "nchw"),
    "view of groups": (lambda x, y: x.view(2, 2, 3, 16), "nchw"),
    "shuffle": (lambda x, y: x.view(2, 3, 2, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4), "nchw"),
    "permute and reshape": (lambda x, y: x.permute(0, 2, 3, 1).reshape(2, 16, 6), "nchw"),
    "transpose": (lambda x, y: x.transpose(1, -1), "nchw"),
    "t": (lambda x, y: x.flatten(1).t(), "nchw"),
    "swapaxes": (lambda x, y: x.swapaxes(0, 1), "nchw"),
    "unsqueeze": (lambda x, y: x.unsqueeze(-1).unsqueeze(1), "nchw"),
    "squeeze": (lambda x, y: (x[:, :, None].squeeze(), x[:, :, None].squeeze(2), x[:, :, None].squeeze(1)), "nchw"),
    "expand": (lambda x, y: x[:, :, None].expand(-1, -1, 5, -1, -1), "nchw"),
    "expand in front": (lambda x, y: x.expand(3, 2, 6, 4, 4), "nchw"),
    "repeat": (lambda x, y: x.repeat(1, 2, 1, 3), "nchw"),
    "select": (lambda x, y: x[:, 2], "nhw"),
    "unbind": (lambda x, y: x.unbind(2), "ncw"),
    "slice": (lambda x, y: (x[:, 1:4], x[:, :2], x[:, -2:], x[:, :]), "nchw"),
    "strided slice": (lambda x, y: x[:, ::2], "nhw"),
    "narrow": (lambda x, y: x.narrow(1, 1, 3), "nchw"),
    "chunk": (lambda x, y: x.chunk(3, 1), "nchw"),
    "split": (lambda x, y: (*x.split(4, 1), *y.split(2, 1)), "nchw"),
    "split with sizes": (lambda x, y: x.split([1, 3, 2], 1), "nchw"),
    "cat": (lambda x, y: (torch.cat([x, y[:, :2], x], 1), torch.cat([x, y], -1)), "nchw"),
    "cat of parts": (lambda x, y: torch.cat([*reversed(x.split([2, 4], 1))], 1), "nchw"),
    "stack": (lambda x, y: torch.stack([x, y], 2), "nchw"),
    "pad channels": (lambda x, y: F.pad(x, (0, 0, 0, 0, 2, 1)), "nchw"),
    "pad space": (lambda x, y: F.pad(x, (1, 2, 0, 1)), "nchw"),
    "reflect space": (lambda x, y: F.pad(x, (1, 1, 2, 0), mode="reflect"), "nc"),
    "max pool": (lambda x, y: F.max_pool2d(x, 2), "nc"),
    "max pool of the same size": (lambda x, y: F.max_pool2d(x, 3, 1, 1), "nc"),
    "adaptive pool": (lambda x, y: F.adaptive_max_pool2d(x, 2), "nc"),
    "upsample": (lambda x, y: F.interpolate(x, scale_factor=2, mode="nearest"), "nc"),
    "roll everything": (lambda x, y: x.roll(3), ""),
    "roll channels": (lambda x, y: x.roll(1, 1), "nhw"),
    "roll space": (lambda x, y: x.roll((1, 2), (2, 3)), "nc"),
    "flip": (lambda x, y: x.flip(3), "nch"),
    "index": (lambda x, y: x[:, torch.tensor([1, 1, 4])], "nhw"),
    "index of two": (lambda x, y: x[:, [1, 2], [0, 3]], "nw"),
    "index of two apart": (lambda x, y: x[:, [1, 2], :, [0, 3]], "nh"),
    "index select": (lambda x, y: x.index_select(-1, torch.tensor([3, 0])), "nch"),
}


@pytest.mark.parametrize("name", CASES)
def test_entries_of_the_output_have_the_coordinates_of_the_entries_they_are(name: str) -> None:
    function, free = CASES[name]
    numbers = torch.arange(1.0, 2 * 2 * 6 * 4 * 4 + 1)
    x, y = (part.clone() for part in numbers.view(2, 2, 6, 4, 4))
    with Rules() as mode:
        mode.layouts.fresh(x)
        mode.layouts.fresh(y)
        outs = tensors_in(function(x, y))
    layouts = mode.layouts
    dims = {letter: layout.leaves(expr) for letter, expr in zip("nchw", layouts.get(x))}
    assert "".join(d for d, leaves in dims.items() if any(leaf.frozen is None for leaf in leaves)) == free
    known = {leaf for t in (x, y) for expr in layouts.get(t) for leaf in layout.leaves(expr) if leaf.frozen is None}
    entries = [frozenset(), *of_entries(layouts.get(x)), *of_entries(layouts.get(y))]
    for out in outs:
        for number, place in zip(out.flatten().long().tolist(), of_entries(layouts.get(out)), strict=True):
            padding = any(axis.frozen == "padding" for axis, _ in place)
            found, expected = ({p for p in ps if p[0] in known} for ps in (place, entries[number]))
            # An entry of the padding is none of the input's, or one that was mirrored: along the padded dimension it
            # has no coordinate.
            assert (found <= expected or number == 0) if padding else found == expected


def test_equal_parts_are_computed_from_the_slim_width_so_they_shrink_alike() -> None:
    x = torch.zeros(1, 6, 2, 2)
    with Rules() as mode:
        mode.layouts.fresh(x)
        a, b = x.chunk(2, 1)
        first, _, last = x.split([2, 2, 2], 1)
    assert mode.layouts.get(a)[1] == mode.layouts.get(b)[1]
    assert layout.resolve(mode.layouts.get(x)[1]) == layout.concat([mode.layouts.get(a)[1]] * 2)
    assert mode.layouts.get(first)[1] != mode.layouts.get(last)[1], "parts whose sizes are written need not"


def test_embeddings_are_free_in_their_width_alone() -> None:
    table = torch.rand(10, 4)
    with Rules() as mode:
        mode.layouts.fresh(table)
        out = F.embedding(torch.tensor([[1, 2, 3]]), table)
    rows, width = mode.layouts.get(table)
    assert layout.is_frozen(rows) and mode.layouts.get(out)[2] is width and width.frozen is None
    assert all(layout.is_frozen(dim) for dim in mode.layouts.get(out)[:2])


def test_new_tensors_take_part_in_whatever_they_are_used_with() -> None:
    x = torch.rand(2, 6)
    with Rules() as mode:
        mode.layouts.fresh(x)
        out = x + torch.zeros(2, 6)
    assert mode.layouts.get(out)[1] == mode.layouts.get(x)[1] and mode.layouts.get(x)[1].frozen is None


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "negative padding"),
        (lambda x: x.view(3, 4, 16), "2 entries .* 3 groups"),
    ],
)
def test_what_no_layout_expresses_raises(function: Callable[[Tensor], Tensor], says: str) -> None:
    x = torch.rand(2, 6, 4, 4)
    with Rules() as mode, pytest.raises(LayoutError, match=says):
        mode.layouts.fresh(x)
        function(x)
