"""The places that an IoU is reported of, against a naive reading of the plan; and the floor of random sets."""

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, similar_zoo, sub_row

import zoo.errors as errors
from zoo.channels import pack, random_floor
from zoo.depth import iou_by_depth
from zoo.units import unit_floor, units_of

SEA = FAMILIES["sea"]


def by_unit(study):
    return {unit.name: study.iou.mean[u].tolist() for u, unit in enumerate(study.units)}


def test_axes_and_layers_lie_at_the_ranks_of_their_writers():
    plan = make_plan([(6, 3), 4, (8, 2)])
    packed = pack([{"a0": [0], "a1": [1], "a2": [2]}, {}], {"a0": 6, "a1": 4, "a2": 8})
    axes = units_of(plan, packed, "coupled", "axis")
    assert [(u.name, u.depth, u.n, u.keys, u.layers) for u in axes] == [
        ("a0", 1.0, 6, ("a0",), ("layer0", "layer1", "layer2")), ("a1", 3.0, 4, ("a1",), ("layer3",)),
        ("a2", 4.5, 8, ("a2",), ("layer4", "layer5")),
    ]  # fmt: skip
    layers = units_of(plan, packed, "coupled", "layer")
    assert [(u.name, u.depth, u.keys) for u in layers] == [
        (f"layer{d}", d, (key,)) for d, key in enumerate(["a0", "a0", "a0", "a1", "a2", "a2"])
    ]
    assert [u.third for u in axes] == [0, 1, 2] and [u.third for u in layers] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_thirds_are_of_the_whole_networks_depth_even_where_nothing_is_pruned(n):
    plan = make_plan([4] * n)
    pruned = [f"a{i}" for i in range(0, n, 2)]
    packed = pack([{axis: [0] for axis in pruned}], {f"a{i}": 4 for i in range(n)})
    for unit in units_of(plan, packed, "coupled", "axis"):
        part = unit.depth / (n - 1) if n > 1 else 0
        assert unit.third == (0 if part < 1 / 3 else 1 if part < 2 / 3 else 2)


def test_what_everybody_keeps_whole_is_left_out():
    plan = make_plan([4, 5])
    some = units_of(plan, pack([{"a1": [0]}, {"a0": [0, 1, 2, 3]}], {"a0": 4, "a1": 5}), "coupled", "axis")
    assert [unit.name for unit in some] == ["a1"]
    with pytest.raises(errors.EmptyZooError, match="every channel"):
        units_of(plan, pack([{}, {}], {"a0": 4, "a1": 5}), "coupled", "axis")


def test_floor_of_a_single_sub_network_is_that_of_its_own_sizes():
    plan = make_plan([6, 9], blocks=["b", "b"])
    packed = pack([{"a0": [0, 1], "a1": [1, 5, 6]}], {"a0": 6, "a1": 9})
    (unit,) = units_of(plan, packed, "coupled", "block")
    assert unit_floor(packed, unit) == pytest.approx(random_floor([6, 9], [2, 3], [2, 3]))


def test_blocks_of_a_vit():
    plan = make_plan(
        [4, 10, 4, 10, 8], kinds=["head", "node"] * 2 + ["filter"], blocks=["b.0", "b.0", "b.1", "b.1", None]
    )
    rng = np.random.default_rng(0)
    names = list(FAMILIES)
    subs = [
        sub_row(f"s{i}", f"t{i}", FAMILIES[names[i % 6]][: 4 + i // 6], channels={
            a: sorted(rng.permutation(v["n"])[: v["n"] // 2].tolist()) for a, v in plan["axes"].items()
        }) for i in range(10)
    ]  # fmt: skip
    study = iou_by_depth(make_snapshot(subs, bases=[base_row(plan=plan)]), per="block", groups=2, bootstrap=2)
    assert [(u.name, u.kind, u.n) for u in study.units[:3]] == [
        ("b.0", "pooled", 14), ("b.0 heads", "head", 4), ("b.0 nodes", "node", 10),
    ]  # fmt: skip
    joined = [
        sub_row(
            s["id"],
            s["task_id"],
            s["labels"],
            channels={"a0": s["channels"]["a0"] + [4 + c for c in s["channels"]["a1"]]},
        )
        for s in subs
    ]
    one = iou_by_depth(make_snapshot(joined, bases=[base_row(plan=make_plan([14]))]), groups=2, bootstrap=2)
    assert by_unit(study)["b.0"] == pytest.approx(by_unit(one)["a0"])
    no_heads = [{**s, "channels": {a: k for a, k in s["channels"].items() if a in ("a1", "a3")}} for s in subs]
    nodes = iou_by_depth(make_snapshot(no_heads, bases=[base_row(plan=plan)]), per="block", groups=2, bootstrap=2)
    assert [(u.name, u.depth, u.n) for u in nodes.units] == [("b.0", 1.0, 10), ("b.1", 3.0, 10)], "one kind: not twice"
    with pytest.raises(errors.OptionError, match="no blocks"):
        iou_by_depth(similar_zoo(8), per="block")


def test_independent_mode_reports_each_layers_own_set():
    plan = make_plan([(6, 2), 4])
    subs = [
        sub_row("x", "tx", SEA[:3], channels={"a0@layer0": [0, 1], "a0@layer1": [2]}, mode="independent"),
        sub_row("y", "ty", SEA[2:], channels={"a0@layer0": [1, 2], "a0@layer1": [2]}, mode="independent"),
    ]
    zoo = make_snapshot(subs, bases=[base_row(plan=plan)])
    layers = by_unit(iou_by_depth(zoo, per="layer", bootstrap=2))
    assert layers["layer0"][0] == pytest.approx(1 / 3) and layers["layer1"][0] == 1
    assert "layer2" not in layers, "kept whole by all"
    assert by_unit(iou_by_depth(zoo, bootstrap=2))["a0"][0] == pytest.approx((1 + 1) / (3 + 1))


def test_floor_is_exact_for_equal_sizes_and_averages_pairs_otherwise():
    study = iou_by_depth(similar_zoo(8), bootstrap=2)
    assert study.floor[0] == pytest.approx(random_floor(16, 5, 5))
    plan = make_plan([6])
    kept = [[0, 1], [2, 3], [1, 2, 3, 4]]
    packed = pack([{"a0": k} for k in kept], {"a0": 6})
    pairs = [random_floor(6, len(kept[i]), len(kept[j])) for i in range(3) for j in range(3) if i != j]
    assert unit_floor(packed, units_of(plan, packed, "coupled", "axis")[0]) == pytest.approx(np.mean(pairs))


def test_floor_of_many_sizes_is_near_the_full_average():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 64, 300)
    packed = pack([{"a0": rng.permutation(64)[:k].tolist()} for k in sizes], {"a0": 64})
    full = np.mean([random_floor(64, int(a), int(b)) for a, b in rng.choice(sizes, (3000, 2))])
    assert unit_floor(packed, units_of(make_plan([64]), packed, "coupled", "axis")[0]) == pytest.approx(full, rel=0.05)
