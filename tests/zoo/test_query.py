"""nearest(): order, filters, groups and messages."""

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_snapshot, similar_zoo, sub_row
from hypothesis import given
from hypothesis import strategies as st

import zoo.errors as errors
from zoo.query import candidates, groups_of, nearest
from zoo.records import Task
from zoo.taskwup import task_wup

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


def small(**fields):
    """Three tasks: one with two sub-networks."""
    return make_snapshot([
        sub_row("cats", "t-cats", CATS, accuracy=0.7, **fields),
        sub_row("cats2", "t-cats", CATS, accuracy=0.9, **fields),
        sub_row("buses", "t-buses", BUSES, **fields), sub_row("dogs", "t-dogs", DOGS, **fields),
    ])  # fmt: skip


def test_best_first_and_the_rows_say_what_they_are():
    zoo = similar_zoo(30)
    found = nearest(zoo, FAMILIES["sea"], k=7)
    assert list(found.score) == sorted(found.score, reverse=True)
    rows = zoo.subnetworks.to_pylist()
    by_id = {row["id"]: row for row in rows}
    for n in found:
        row = by_id[n.id]
        assert n.score == task_wup(FAMILIES["sea"], row["synsets"])
        assert n.labels == tuple(row["labels"]) and n.accuracy == row["accuracy"] and n.producer == "ifp"
        assert n.shared == len(set(FAMILIES["sea"]) & set(row["labels"]))
    best = sorted(rows, key=lambda r: (-task_wup(FAMILIES["sea"], r["synsets"]), r["id"]))[:7]
    assert found.id == tuple(row["id"] for row in best)
    assert found.measure == "wup"


def test_ties_go_by_id():
    zoo = make_snapshot([sub_row(i, f"t{i}", CATS, dataset=i) for i in "dbca"])
    assert nearest(zoo, Task(DOGS, dataset="q"), k=3).id == ("a", "b", "c")


def test_one_sub_network_a_task_is_the_most_accurate():
    assert nearest(small(), DOGS, k=2).id == ("cats2", "buses")
    assert nearest(small(), DOGS, k=3, per_task=2).id == ("cats", "cats2", "buses")
    assert nearest(small(), DOGS, k=3, per_task=None).id == ("cats", "cats2", "buses")
    unmeasured = make_snapshot([sub_row("a", "t", CATS, accuracy=None), sub_row("b", "t", CATS, accuracy=0.1)])
    assert nearest(unmeasured, DOGS, k=1).id == ("b",)
    assert nearest(unmeasured, DOGS, k=2, per_task=2).accuracy == (None, 0.1)


def test_exclude():
    zoo = small()
    assert "dogs" not in nearest(zoo, DOGS[::-1], k=None).id, "same classes in another order"
    assert nearest(zoo, DOGS, k=1, exclude=None).id == ("dogs",)
    assert nearest(zoo, DOGS, k=1, exclude="same_task").id == ("dogs",), "labels alone are another task"
    assert nearest(zoo, "t-dogs", k=None, exclude="same_task").id == ("cats2", "buses")
    assert nearest(zoo, ["dog.n.01", "bus.n.01"], k=None, exclude="overlap").id == ("cats2",)
    assert nearest(zoo, DOGS, k=None, exclude=["cats2", "dogs"]).id == ("cats", "buses")
    with pytest.raises(errors.NotFoundError):
        nearest(zoo, DOGS, exclude=["nobody"])
    with pytest.raises(errors.OptionError, match=r"same_classes \| same_task"):
        nearest(zoo, DOGS, exclude="nothing")


def test_filters_and_what_is_said_when_too_little_is_left():
    bases = [base_row("one"), base_row("two")]
    zoo = make_snapshot([
        sub_row("a", "ta", CATS, base_id="base-one"), sub_row("b", "tb", BUSES, base_id="base-two", producer="random"),
        sub_row("c", "tc", FAMILIES["sea"], base_id="base-two"),
    ], bases=bases)  # fmt: skip
    assert nearest(zoo, DOGS, k=None, base="two").id == ("c", "b")
    assert nearest(zoo, DOGS, k=None, base="base-one").id == ("a",)
    assert nearest(zoo, DOGS, k=None, producer="random").id == ("b",)
    assert nearest(zoo, DOGS, k=None, producer=["random", "ifp"], allowed={"a", "c"}).id == ("a", "c")
    with pytest.raises(errors.EmptyZooError) as caught:
        nearest(zoo, DOGS, k=2, base="two", producer="ifp")
    assert "1 of 3" in str(caught.value)
    assert caught.value.problems == ("base='two' removed 1", "producer=ifp removed 1")
    with pytest.raises(errors.NotFoundError, match="base-one  one"):
        nearest(zoo, DOGS, base="three")
    with pytest.raises(errors.EmptyZooError, match="no sub-networks"):
        nearest(make_snapshot(), DOGS)
    with pytest.raises(errors.EmptyZooError, match="0 of 3"):
        nearest(zoo, DOGS, k=None, producer="nobody")


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"k": 1.5}, {"k": True}, {"per_task": 0}, {"group": 6}, {"group": 0}, {"groups": 0},
     {"group": 1, "binning": "thirds"}, {"by": "nonsense"}, {"by": "wup", "how": "max"}],
)  # fmt: skip
def test_options_outside_their_range(options):
    with pytest.raises(errors.OptionError):
        nearest(small(), DOGS, **options)


def test_candidates_are_those_that_need_scores():
    zoo = similar_zoo(20)
    ids = candidates(zoo, "s0000", by="leep", producer="ifp")
    assert sorted(nearest(zoo, "s0000", by="leep", k=None).id) == sorted(ids) and "s0000" not in ids
    assert candidates(zoo, "s0000", producer="nobody") == []


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30), st.integers(1, 7))
def test_groups_are_equal_intervals(values, groups):
    scores = [v / 8 for v in values]
    low, high = min(scores), max(scores)
    for score, group in zip(scores, groups_of(scores, groups)):
        if low == high:
            assert group == 1
        else:
            edges = np.linspace(low, high, groups + 1)
            expected = next((g for g in range(1, groups) if score >= edges[groups - g]), groups)
            assert group == expected
    if low != high:
        assert groups_of([high, low], groups).tolist() == [1, groups]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 5))
def test_quantile_groups_keep_order_and_ties(values, groups):
    found = groups_of(values, groups, "quantile")
    assert all((a > b) <= (g <= h) and (a != b or g == h) for a, g in zip(values, found) for b, h in zip(values, found))
    assert set(found.tolist()) <= set(range(1, groups + 1))


def test_quantile_groups_are_even_without_ties():
    assert np.bincount(groups_of(np.arange(20.0), 5, "quantile")).tolist() == [0, 4, 4, 4, 4, 4]
    assert groups_of([], 5).tolist() == []


def test_group_restricts_and_sample_draws():
    zoo = similar_zoo(40)
    every = nearest(zoo, "s0000", k=None)
    group = groups_of(every.score, 5)
    for g in (1, 3, 5):
        inside = [n.id for n, h in zip(every, group) if h == g]
        assert list(nearest(zoo, "s0000", k=None, group=g).id) == inside
        drawn = nearest(zoo, "s0000", k=1, group=g, sample=0)
        assert drawn.id == nearest(zoo, "s0000", k=1, group=g, sample=0).id and drawn.id[0] in inside
    some = {nearest(zoo, "s0000", k=2, group=5, sample=s).id for s in range(20)}
    assert len(some) > 1
    with pytest.raises(errors.EmptyZooError, match="group=5 of 5 removed"):
        nearest(zoo, "s0000", k=39, group=5, exclude=None, per_task=None)
