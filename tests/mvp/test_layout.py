import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp import layout
from mvp.layout import Axis, Compound, LayoutError

trees = st.recursive(
    st.builds(Axis, st.integers(1, 6)),
    lambda parts: st.one_of(
        st.builds(layout.product, st.lists(parts, min_size=1, max_size=3)),
        st.builds(layout.concat, st.lists(parts, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)


def entries(expr: layout.Expr) -> list[tuple[tuple[int, int], ...]]:
    """Brute force: which entry of which axes each entry of a dimension belongs to; an axis of one is never pruned."""
    expr = layout.resolve(expr)
    if isinstance(expr, Axis):
        return [((id(expr), i),) if expr.n > 1 else () for i in range(expr.n)]
    if expr.kind == "cat":
        return [entry for part in expr.parts for entry in entries(part)]
    out: list[tuple[tuple[int, int], ...]] = [()]
    for part in expr.parts:
        out = [a + b for a in out for b in entries(part)]
    return out


def frozen(expr: layout.Expr) -> bool:
    return any(leaf.frozen not in (None, "empty", "unit") for leaf in layout.leaves(expr))


@given(trees, st.data())
def test_split_cuts_where_it_says(expr: layout.Expr, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, layout.size(expr)))
    left, right = layout.split(expr, k)
    assert (layout.size(left), layout.size(right)) == (k, layout.size(expr) - k)
    if not frozen(left) and not frozen(right):
        assert entries(left) + entries(right) == entries(expr)


@given(trees, st.data())
def test_factor_gives_rows_of_equal_structure(expr: layout.Expr, data: st.DataObject) -> None:
    n = layout.size(expr)
    k = data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    try:
        outer, inner = layout.factor(expr, k)
    except LayoutError:
        return
    assert layout.size(outer) == k and layout.size(inner) == n // k
    if not any(leaf.frozen for leaf in layout.leaves(expr) + layout.leaves(outer)):
        assert len(entries(layout.product([outer, inner]))) == n


@given(trees, trees)
def test_unified_dimensions_are_one_or_constant(a: layout.Expr, b: layout.Expr) -> None:
    if layout.size(a) != layout.size(b):
        with pytest.raises(LayoutError, match="cannot be one axis"):
            layout.unify(a, b)
        return
    try:
        layout.unify(a, b)
    except LayoutError:
        return
    assert layout.size(a) == layout.size(b)
    free_a, free_b = ({leaf for leaf in layout.leaves(e) if leaf.frozen is None and leaf.n > 1} for e in (a, b))
    assert free_a == free_b or layout.is_frozen(a) or layout.is_frozen(b)


def test_what_is_learnt_of_an_axis_holds_for_its_parts() -> None:
    axis = Axis(12)
    axis.soft.add("norm")
    layout.mark_heads(axis)
    outer, inner = layout.factor(axis, 3)
    assert layout.resolve(axis) == Compound("prod", (outer, inner))
    assert outer.soft == inner.soft == {"norm"} and outer.head and inner.head
    layout.freeze(axis, "why")
    assert layout.is_frozen(outer) and inner.frozen == "why"
    layout.freeze(axis, "later")
    assert inner.frozen == "why"  # the first reason is kept


def test_an_axis_that_would_contain_itself_becomes_a_constant() -> None:
    axis = Axis(4)
    both = layout.concat([axis, Axis(0)])
    layout.unify(axis, both)
    assert axis.frozen is None
    small = Axis(2)
    layout.unify(axis, layout.product([small, Axis(2)]))
    layout.unify(small, Axis(2))
    assert layout.size(axis) == 4


def test_regroup_keeps_axes_whole() -> None:
    batch, heads, width = Axis(2, "input"), Axis(3), Axis(4)
    merged = layout.regroup([batch, layout.product([heads, width])], [6, 4])
    assert merged == [layout.product([batch, heads]), width]
    assert layout.regroup(merged, [2, 3, 4]) == [batch, heads, width]
    assert layout.regroup([batch, heads], [2, 1, 3])[2] is heads
    with pytest.raises(LayoutError):
        layout.regroup([Axis(3, "x"), Axis(5)], [5, 3])
