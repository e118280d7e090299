"""Symbolic axis algebra: what a tensor dimension consists of.

A dimension is an expression: an `Axis` (a set of channels that live or die together), or a `Compound` of expressions,
either a product (row-major flattening, `prod(heads, 64)`) or a concatenation (`cat(left, right)`). Tracing a network
learns that two dimensions are the same (`unify`) or that one is made of smaller ones (`split`, `factor`); axes are
union-find nodes, so what is learnt about one holds for every tensor that carries it.

What cannot be followed is frozen: a frozen axis is a constant, it is never pruned, and that is always correct.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class LayoutError(Exception):
    """An operation whose effect on the axes cannot be expressed; the tracer freezes what took part in it."""


class Axis:
    """One set of channels, or a link to the expression that it turned out to be.

    Args:
        n: Number of channels, >= 0.
        frozen: Why the axis is a constant, or None while it can be pruned.
    """

    __slots__ = ("frozen", "head", "link", "n", "soft")

    def __init__(self, n: int, frozen: str | None = None) -> None:
        self.n = int(n)
        self.frozen = frozen
        self.head = False
        self.soft: set[str] = set()
        self.link: Expr | None = None


@dataclass(frozen=True)
class Compound:
    """A product (`kind` "prod", outermost part first) or a concatenation ("cat") of at least two expressions."""

    kind: str
    parts: tuple["Axis | Compound", ...]


Expr = Axis | Compound


def size(expr: Expr) -> int:
    """Number of entries of a dimension with this expression."""
    if isinstance(expr, Axis):
        return expr.n
    sizes = [size(part) for part in expr.parts]
    return math.prod(sizes) if expr.kind == "prod" else sum(sizes)


def _compound(kind: str, parts: Iterable[Expr]) -> Expr:
    neutral = 1 if kind == "prod" else 0
    flat: list[Expr] = []
    for part in parts:
        if isinstance(part, Compound) and part.kind == kind:
            flat.extend(part.parts)
        elif size(part) != neutral:
            flat.append(part)
    if not flat:
        return Axis(neutral, "empty")
    return flat[0] if len(flat) == 1 else Compound(kind, tuple(flat))


def product(parts: Iterable[Expr]) -> Expr:
    """Row-major flattening of dimensions, outermost first; parts of size 1 vanish."""
    return _compound("prod", parts)


def concat(parts: Iterable[Expr]) -> Expr:
    """Concatenation of dimensions; empty parts vanish."""
    return _compound("cat", parts)


def resolve(expr: Expr) -> Expr:
    """The expression with every link followed; links are shortened on the way."""
    if isinstance(expr, Axis):
        if expr.link is None:
            return expr
        expr.link = resolve(expr.link)
        return expr.link
    return _compound(expr.kind, [resolve(part) for part in expr.parts])


def leaves(expr: Expr) -> list[Axis]:
    """The axes of an expression, left to right, repetitions included."""
    expr = resolve(expr)
    if isinstance(expr, Axis):
        return [expr]
    return [leaf for part in expr.parts for leaf in leaves(part)]


def is_frozen(expr: Expr) -> bool:
    """True when no axis of the expression can be pruned."""
    return all(leaf.frozen is not None for leaf in leaves(expr))


def freeze(expr: Expr, why: str) -> None:
    """Make every axis of the expression a constant; the first reason is kept."""
    for leaf in leaves(expr):
        if leaf.frozen is None:
            leaf.frozen = why


def soften(expr: Expr, why: str) -> None:
    """Note that pruning these axes changes what the other channels compute (a norm or softmax runs over them)."""
    for leaf in leaves(expr):
        leaf.soft.add(why)


def mark_heads(expr: Expr) -> None:
    """Note that these axes count attention heads."""
    for leaf in leaves(expr):
        leaf.head = True


def _define(axis: Axis, expr: Expr) -> None:
    if expr is axis:
        return
    if any(leaf is axis for leaf in leaves(expr)):
        freeze(expr, "the axis would contain itself")
        return
    for leaf in leaves(expr):
        leaf.soft |= axis.soft
        leaf.head |= axis.head
        if leaf.frozen is None:
            leaf.frozen = axis.frozen
    axis.link = expr


def split(expr: Expr, k: int) -> tuple[Expr, Expr]:
    """Cut a dimension after its first k entries.

    Returns:
        The two parts, of sizes k and size - k; a part of size 0 is an empty constant.
    """
    expr = resolve(expr)
    n = size(expr)
    if k == 0:
        return Axis(0, "empty"), expr
    if k == n:
        return expr, Axis(0, "empty")
    if isinstance(expr, Axis):
        left, right = Axis(k), Axis(n - k)
        _define(expr, concat([left, right]))
        return left, right
    if expr.kind == "cat":
        return _split_cat(expr, k)
    inner = product(expr.parts[1:])
    if k % size(inner) == 0:
        outer_left, outer_right = split(expr.parts[0], k // size(inner))
        return product([outer_left, inner]), product([outer_right, inner])
    freeze(expr, "cut inside a group")
    return Axis(k, "cut inside a group"), Axis(n - k, "cut inside a group")


def _split_cat(expr: Compound, k: int) -> tuple[Expr, Expr]:
    left: list[Expr] = []
    for i, part in enumerate(expr.parts):
        if size(part) <= k:
            left.append(part)
            k -= size(part)
        else:
            cut_left, cut_right = split(part, k)
            return concat([*left, cut_left]), concat([cut_right, *expr.parts[i + 1 :]])
    return concat(left), Axis(0, "empty")


def factor(expr: Expr, k: int) -> tuple[Expr, Expr]:
    """Take a dimension apart into an outer one of size k and an inner one of size n / k.

    Raises:
        LayoutError: The parts do not align with k.
    """
    expr = resolve(expr)
    n = size(expr)
    if k < 1 or n % k:
        raise LayoutError(f"{n} entries do not factor into {k} groups")
    if k == 1:
        return Axis(1, "unit"), expr
    if k == n:
        return expr, Axis(1, "unit")
    if isinstance(expr, Axis):
        outer, inner = Axis(k), Axis(n // k)
        _define(expr, product([outer, inner]))
        return outer, inner
    if expr.kind == "cat":
        rest: Expr = expr
        first, rest = split(rest, n // k)
        for _ in range(k - 2):
            part, rest = split(rest, n // k)
            unify(first, part)
        unify(first, rest)
        return Axis(k, "stacked parts"), resolve(first)
    outer_parts: list[Expr] = []
    for i, part in enumerate(expr.parts):
        s = size(part)
        if k % s == 0:
            outer_parts.append(part)
            k //= s
            if k == 1:
                return product(outer_parts), product(expr.parts[i + 1 :])
        else:
            last, rest = factor(part, k)
            return product([*outer_parts, last]), product([rest, *expr.parts[i + 1 :]])
    raise LayoutError(f"no cut of {n} entries at {k} groups")


def unify(a: Expr, b: Expr) -> None:
    """Learn that two dimensions are the same; where their structures do not align both become constants.

    Raises:
        LayoutError: Their sizes differ.
    """
    a, b = resolve(a), resolve(b)
    if a == b:
        return
    if size(a) != size(b):
        raise LayoutError(f"dimensions of sizes {size(a)} and {size(b)} cannot be one axis")
    if isinstance(a, Axis):
        _define(a, b)
    elif isinstance(b, Axis):
        _define(b, a)
    elif a.kind == b.kind == "prod":
        _unify_products(a, b)
    else:
        if a.kind != "cat":
            a, b = b, a
        first, rest = a.parts[0], concat(a.parts[1:])
        left, right = split(b, size(first))
        unify(first, left)
        unify(rest, right)


def _unify_products(a: Compound, b: Compound) -> None:
    if size(a.parts[0]) > size(b.parts[0]):
        a, b = b, a
    s = size(a.parts[0])
    if size(b.parts[0]) % s:
        freeze(a, "groups do not align")
        freeze(b, "groups do not align")
        return
    outer, inner = factor(b, s)
    unify(a.parts[0], outer)
    unify(product(a.parts[1:]), inner)


def regroup(dims: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    """The expressions of a row-major reshape.

    Args:
        dims: Expressions of the tensor before.
        shape: Sizes after; the same number of entries.

    Raises:
        LayoutError: A new dimension starts or ends inside an axis in a way that no product expresses.
    """
    pool: list[Expr] = []
    for part in _factors(dims):
        last = pool[-1] if pool else None
        if isinstance(part, Axis) and part.frozen and isinstance(last, Axis) and last.frozen:
            pool[-1] = Axis(last.n * part.n, last.frozen)
        else:
            pool.append(part)
    out: list[Expr] = []
    for n in shape:
        taken: list[Expr] = []
        need = n
        while need > 1:
            if not pool:
                raise LayoutError(f"cannot view {[size(d) for d in dims]} as {list(shape)}")
            first = resolve(pool.pop(0))
            if isinstance(first, Compound) and first.kind == "prod":
                pool[:0] = first.parts
                continue
            k = size(first)
            if need % k:
                first, inner = factor(first, need)
                pool.insert(0, inner)
                k = need
            taken.append(first)
            need //= k
        out.append(product(taken) if taken else Axis(n, "unit"))
    return out


def _factors(dims: Sequence[Expr]) -> Iterable[Expr]:
    for dim in dims:
        expr = resolve(dim)
        parts = expr.parts if isinstance(expr, Compound) and expr.kind == "prod" else (expr,)
        yield from (part for part in parts if size(part) != 1)
