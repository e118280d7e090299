"""Which sub-networks a study takes, against a filter in plain Python, and what it says when they may not be mixed."""

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, sub_row

import zoo.errors as errors
from zoo.cohort import choose
from zoo.depth import iou_by_depth
from zoo.rows import Rows

SEA = FAMILIES["sea"]
PLAN = make_plan([8, 8])
ANY = dict.fromkeys(["base", "mode", "producer", "keep", "generation", "ids"])


@pytest.fixture(scope="module")
def mixed():
    """Sub-networks that differ in everything a study may be asked to choose by, in an order that mixes them."""
    rng = np.random.default_rng(0)
    subs = []
    for i in range(64):
        mode = "independent" if i % 7 == 0 else "coupled"
        key = "a0@layer0" if mode == "independent" else "a0"
        subs.append(sub_row(
            f"id{i:04d}", f"t{i}", SEA, base_id="base-toy" if i % 5 else "base-other", mode=mode,
            producer="random" if i % 4 == 3 else "ifp", keep=0.3 if i % 3 else 0.1 + 0.2, generation=int(i % 6 == 5),
            kind="element" if i % 11 == 10 else "structured", channels={key: sorted(rng.permutation(8)[:3].tolist())},
        ))  # fmt: skip
    return make_snapshot(subs, bases=[base_row(plan=PLAN), base_row("other", PLAN)])


@pytest.mark.parametrize("generation", [0, 1])
@pytest.mark.parametrize("producer", ["ifp", "random"])
@pytest.mark.parametrize(("base", "base_id"), [("toy", "base-toy"), ("base-o", "base-other")])
@pytest.mark.parametrize("mode", ["coupled", "independent"])
def test_the_filters_leave_what_fits_all_of_them(mixed, mode, base, base_id, producer, generation):
    subs = mixed.subnetworks.to_pylist()
    asked = {"base_id": base_id, "mode": mode, "producer": producer, "generation": generation, "kind": "structured"}
    expected = [s for s in subs if all(s[name] == value for name, value in asked.items())]
    options = {**ANY, "base": base, "mode": mode, "producer": producer, "keep": 0.3, "generation": generation}
    if len(expected) < 2:
        with pytest.raises(errors.EmptyZooError, match=f"{len(expected)} of 64 .*keep=0.3"):
            choose(Rows.of(mixed), **options)
        return
    chosen = choose(Rows.of(mixed), **options)
    assert [subs[i]["id"] for i in chosen.which] == [s["id"] for s in expected], "0.1 + 0.2 is 0.3 too"
    key = "a0@layer0" if mode == "independent" else "a0"
    assert [chosen.packed.kept(key, j).tolist() for j in range(len(expected))] == [
        dict(s["channels"])[key] for s in expected
    ]
    assert chosen.plan == PLAN
    assert chosen.about == {
        "base": f"{base_id[5:]} ({base_id})", "base_id": base_id, "mode": mode, "producer": producer, "keep": 0.3,
        "generation": generation, "subnetworks": len(expected),
    }  # fmt: skip


def test_given_ids_may_differ_in_producer_keep_and_generation_but_not_in_base_or_mode(mixed):
    rows = Rows.of(mixed)
    chosen = choose(rows, **{**ANY, "generation": 0, "ids": ["id0003", "id0001", "id0002", "id0011"]})
    assert [rows.ids[i] for i in chosen.which] == ["id0001", "id0002", "id0003", "id0011"]
    assert chosen.about["producer"] == "several" and chosen.about["generation"] == "any"
    only = choose(rows, **{**ANY, "ids": ["id0003", "id0001", "id0002", "id0011"], "producer": "random"})
    assert [rows.ids[i] for i in only.which] == ["id0003", "id0011"]
    for other, field in (("id0007", "mode"), ("id0005", "base")):
        with pytest.raises(errors.MixtureError) as caught:
            choose(rows, **{**ANY, "ids": ["id0001", "id0002", other]})
        assert [problem.partition(":")[0] for problem in caught.value.problems] == [field]
    with pytest.raises(errors.MixtureError, match=r"id0010: element"):
        choose(rows, **{**ANY, "ids": ["id0001", "id0010"]})
    with pytest.raises(errors.NotFoundError):
        choose(rows, **{**ANY, "ids": ["id0001", "nobody"]})


def test_a_mixture_lists_what_is_there_and_how_to_choose():
    subs = [
        sub_row("a", "ta", SEA, channels={"a0": [0]}), sub_row("b", "tb", SEA[:3], channels={"a0": [0]}),
        sub_row("c", "tc", SEA[:2], channels={"a0": [0]}, producer="random", keep=0.1),
        sub_row("d", "td", SEA[1:], channels={"a0": [0]}, base_id="base-other"),
        sub_row("v", "tv", SEA[1:3], channels={"a0": [0]}, generation=1, producer="vote"),
    ]  # fmt: skip
    zoo = make_snapshot(subs, bases=[base_row(), base_row("other")])
    with pytest.raises(errors.MixtureError) as caught:
        iou_by_depth(zoo)
    base, producer, keep = caught.value.problems
    assert base == "base: other (base-other) x 1, toy (base-toy) x 3; choose with base='base-toy'"
    assert producer == "producer: ifp x 3, random x 1; choose with producer='ifp'"
    assert keep == "keep: 0.1 x 1, 0.5 x 3; choose with keep=0.5"
    assert iou_by_depth(zoo, base="toy", producer="ifp", bootstrap=2).about["subnetworks"] == 2
    assert iou_by_depth(zoo, ids=["a", "b", "c", "v"], bootstrap=2).about["producer"] == "several"
    with pytest.raises(errors.MixtureError, match="base-other"):
        iou_by_depth(zoo, ids=["a", "d"])
    with pytest.raises(errors.EmptyZooError, match="1 of 5"):
        iou_by_depth(zoo, base="other")
    with pytest.raises(errors.EmptyZooError, match="no sub-networks"):
        iou_by_depth(make_snapshot())
    element = make_snapshot([*subs[:2], sub_row("e", "te", SEA, kind="element")])
    with pytest.raises(errors.MixtureError, match="no channel sets"):
        iou_by_depth(element, ids=["a", "e"])
    assert iou_by_depth(element, bootstrap=2).about["subnetworks"] == 2
