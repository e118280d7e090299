"""What an IoU is reported of: an axis, a layer, or a block with its heads and nodes, each with its depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from zoo.channels import Packed, count, random_floor
from zoo.errors import EmptyZooError, OptionError

PER = ("axis", "layer", "block")
THIRDS = ("first third", "middle third", "last third")
FLOOR_SIZES = 24  # different kept sizes that a unit's floor is averaged over, at most


@dataclass(frozen=True)
class Unit:
    """One place in the network.

    Attributes:
        name: Axis ("a3"), layer ("layer1.0.conv1") or block ("blocks.0", "blocks.0 heads").
        depth: Forward rank of its layers, averaged where there are several.
        third: 0, 1 or 2: the third of the network's depth that `depth` lies in.
        kind: "filter" | "node" | "head" | "pooled" (all kinds of a block).
        block: Name of its block, None outside of one.
        keys: Channel sets that make it up; several are taken together as one set.
        n: Channels of the base there.
        layers: Layers that write it.
    """

    name: str
    depth: float
    third: int
    kind: str
    block: str | None
    keys: tuple[str, ...]
    n: int
    layers: tuple[str, ...]


def units_of(plan: Mapping[str, Any], packed: Packed, mode: str, per: str) -> list[Unit]:
    """What a study reports an IoU of, by depth; sets that all sub-networks keep whole are left out.

    Args:
        plan: The base's plan.
        packed: The sub-networks' channel sets.
        mode: "coupled" | "independent"; in the latter an axis is the sets of its writer layers taken together.
        per: "axis" | "layer" | "block".

    Raises:
        OptionError: per="block" of a plan without blocks.
        EmptyZooError: Nothing is pruned anywhere.
    """
    deepest = max((w["depth"] for axis in plan["axes"].values() for w in axis["writers"]), default=0)
    units = []

    def add(name: str, depth: float, kind: str, block: str | None, writers: Mapping[str, Sequence[str]]) -> None:
        """A unit of the channel sets {key: layers that write it} that someone prunes."""
        keys = tuple(key for key in writers if not packed.whole(key))
        layers = tuple(dict.fromkeys(layer for key in keys for layer in writers[key]))
        if keys:
            third = min(2, int(3 * depth / deepest)) if deepest else 0
            n = sum(packed.sizes[key] for key in keys)
            units.append(Unit(name, float(depth), third, kind, block, keys, n, layers))

    blocks: dict[str, list[str]] = {}
    for name, axis in plan["axes"].items():
        writers = _writers(name, axis, mode)
        if per == "axis":
            add(name, axis["depth"], axis["kind"], axis["block"], writers)
        elif per == "layer":
            for w in axis["writers"]:
                key = f"{name}@{w['layer']}" if mode == "independent" else name
                add(w["layer"], w["depth"], axis["kind"], axis["block"], {key: [w["layer"]]})
        elif axis["block"] is not None:
            blocks.setdefault(axis["block"], []).append(name)
    if per == "block" and not blocks:
        raise OptionError("per='block': the base's plan has no blocks", expected="per='axis' or per='layer'")
    for block, names in blocks.items():
        of_kind: dict[str, dict[str, list[str]]] = {}
        depths = []
        for name in names:
            axis = plan["axes"][name]
            pruned = {key: layers for key, layers in _writers(name, axis, mode).items() if not packed.whole(key)}
            if pruned:
                of_kind.setdefault(axis["kind"], {}).update(pruned)
                depths.append(axis["depth"])
        depth = float(np.mean(depths)) if depths else 0.0
        add(block, depth, "pooled", block, {key: layers for sets in of_kind.values() for key, layers in sets.items()})
        for kind, sets in of_kind.items() if len(of_kind) > 1 else ():
            add(f"{block} {kind}s", depth, kind, block, sets)
    if not units:
        raise EmptyZooError("the sub-networks keep every channel, so there is nothing to compare")
    return sorted(units, key=lambda unit: unit.depth)


def _writers(name: str, axis: Mapping[str, Any], mode: str) -> dict[str, list[str]]:
    """{key of a channel set: layers that write it} of one axis."""
    layers = [w["layer"] for w in axis["writers"]]
    return {f"{name}@{layer}": [layer] for layer in layers} if mode == "independent" else {name: layers}


def unit_floor(packed: Packed, unit: Unit) -> float:
    """Expected IoU of random sets, averaged over pairs of the sizes that the sub-networks keep.

    Of more than `FLOOR_SIZES` different sizes an even choice stands for all.
    """
    kept = np.stack([count(packed.bits[key]) for key in unit.keys], axis=1)
    kept = kept[np.lexsort(kept.T[::-1])]
    sizes, counts = np.unique(kept, axis=0, return_counts=True)
    if len(sizes) > FLOOR_SIZES:
        sizes = kept[np.linspace(0, len(kept) - 1, FLOOR_SIZES).round().astype(int)]
        counts = np.ones(len(sizes), np.int64)
    n = [packed.sizes[key] for key in unit.keys]
    total = weight = 0.0
    for i, j in combinations_with_replacement(range(len(sizes)), 2):
        # Ordered pairs of different sub-networks; with a single one the size stands for itself.
        times = counts[i] * (counts[i] - 1) if i == j else 2 * counts[i] * counts[j]
        if times:
            total += times * random_floor(n, sizes[i].tolist(), sizes[j].tolist())
            weight += times
    return total / weight if weight else random_floor(n, sizes[0].tolist(), sizes[0].tolist())
