"""The IoU-by-depth study against loops over Python sets, and what it refuses."""

import numpy as np
import pytest
from fakes import FAMILIES, base_row, make_plan, make_snapshot, naive_iou, score_row, similar_zoo, sub_row

import zoo.errors as errors
from zoo.channels import random_floor
from zoo.depth import iou_against, iou_by_depth
from zoo.query import groups_of
from zoo.taskwup import task_wup

SEA = FAMILIES["sea"]


def naive_study(snapshot, axes, groups=5, exclude_same=True):
    """Mean IoU by axis and group: every sub-network a target, group means of it, then the mean over targets."""
    subs = snapshot.subnetworks.to_pylist()
    kept = [dict(s["channels"]) for s in subs]
    result = {}
    for axis in axes:
        per_group = [[] for _ in range(groups)]
        for t, target in enumerate(subs):
            others = [
                j for j, s in enumerate(subs)
                if j != t and not (exclude_same and set(s["labels"]) == set(target["labels"]))
            ]  # fmt: skip
            scores = [task_wup(target["synsets"], subs[j]["synsets"]) for j in others]
            group = groups_of(scores, groups)
            for g in range(groups):
                ious = [naive_iou(kept[t][axis], kept[j][axis]) for j, h in zip(others, group) if h == g + 1]
                if ious:
                    per_group[g].append(np.mean(ious))
        result[axis] = [np.mean(values) if values else np.nan for values in per_group]
    return result


def by_unit(study):
    frame = study.to_pandas()
    return {name: part["iou"].tolist() for name, part in frame.groupby("name", sort=False)}


def test_study_equals_loops():
    zoo = similar_zoo(24)
    study = iou_by_depth(zoo, bootstrap=5)
    axes = [unit.name for unit in study.units]
    expected = naive_study(zoo, axes)
    found = by_unit(study)
    for axis in axes:
        assert found[axis] == pytest.approx(expected[axis], abs=1e-12, nan_ok=True)


def test_known_structure_is_found():
    """Families share channels more and more with depth: the gap must grow, and the first third must show none."""
    gap = {row["depth"]: row for row in iou_by_depth(similar_zoo(60)).gap.rows()}
    assert gap["last third"]["low"] > 0.1
    assert gap["last - first"]["low"] > 0
    assert gap["first third"]["low"] < 0 < gap["first third"]["high"]
    assert gap["all"]["axes"] == 9 and gap["first third"]["axes"] == 3


def test_leep_and_wup_can_differ_and_both_run():
    zoo = similar_zoo(20)
    studies = {by: iou_by_depth(zoo, by=by, bootstrap=3) for by in ("wup", "leep", "prototype", "mask_iou")}
    assert len({tuple(study.iou.mean.ravel()) for study in studies.values()}) == 4
    own = studies["mask_iou"].thirds.mean[0]
    assert (np.diff(own[np.isfinite(own)]) < 0).all(), "sorted by the IoU itself, IoU must fall from group to group"


def test_layers_repeat_the_set_of_their_axis_at_their_own_depth():
    zoo = similar_zoo(12)
    axes, layers = iou_by_depth(zoo, bootstrap=2), iou_by_depth(zoo, per="layer", bootstrap=2)
    assert [unit.depth for unit in layers.units] == list(range(15))
    found, by_layer = by_unit(axes), by_unit(layers)
    assert by_layer["layer0"] == by_layer["layer2"] == found["a0"] and by_layer["layer3"] == found["a1"]
    assert layers.gap.columns == axes.gap.columns, "thirds count each axis once, whatever is listed"


def test_random_sub_networks_lie_on_the_floor():
    rng = np.random.default_rng(3)
    zoo = similar_zoo(60)
    subs = [{**s, "channels": {a: sorted(rng.permutation(16)[:5].tolist()) for a in ("a0", "a1")}, "embeddings": {}}
            for s in zoo.subnetworks.to_pylist()]  # fmt: skip
    study = iou_by_depth(make_snapshot(subs, bases=[base_row(plan=make_plan([16, 16]))]))
    assert study.thirds.low[0].min() < study.floor[0] < study.thirds.high[0].max()
    gap = study.gap.rows()[0]
    assert gap["low"] < 0 < gap["high"]


def test_shared_classes():
    zoo = similar_zoo(18)
    subs = zoo.subnetworks.to_pylist()
    rows = [r for r in iou_by_depth(zoo, bootstrap=2).shared_class_table().rows() if r["depth"] == "all"]
    axes = list(dict(subs[0]["channels"]))
    for row in rows:
        means, pairs = [], 0
        for s in subs:
            others = [o for o in subs if o is not s and len(set(s["labels"]) & set(o["labels"])) == row["shared"] < 5]
            kept = dict(s["channels"])
            if others:
                means.append(np.mean([naive_iou(kept[a], dict(o["channels"])[a]) for o in others for a in axes]))
                pairs += len(others)
        assert (row["pairs"], row["targets"]) == (pairs, len(means))
        assert row["iou"] == pytest.approx(np.mean(means))


def test_exclude_and_equal_scores():
    twins = make_snapshot(
        [sub_row(i, f"t{i}", SEA, dataset="d", channels={"a0": [0, 1]}) for i in "ab"]
        + [sub_row("c", "tc", FAMILIES["pets"], channels={"a0": [2]})]
    )
    study = iou_by_depth(twins, bootstrap=2)
    assert study.sizes.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [2, 0, 0, 0, 0]], "one score for all: group 1"
    assert study.size_table()["targets without"] == [0, 3, 3, 3, 3]
    assert np.isnan(study.unit_gap.mean).all()
    assert iou_by_depth(twins, exclude=None, bootstrap=2).sizes.sum() == 6
    with pytest.raises(errors.EmptyZooError, match="no pair"):
        iou_by_depth(make_snapshot([sub_row(i, i, SEA, channels={"a0": [0]}) for i in "ab"]))


def test_missing_scores_and_unpruned_sub_networks():
    subs = [sub_row("a", "ta", SEA, channels={"a0": [0]}), sub_row("b", "tb", SEA[:3], channels={"a0": [0]})]
    with pytest.raises(errors.MissingScoresError, match="1 of 2 target tasks"):
        iou_by_depth(make_snapshot(subs, [score_row("a", "tb", -1.0)]), by="leep")
    with pytest.raises(errors.EmptyZooError, match="every channel"):
        iou_by_depth(make_snapshot([sub_row("a", "ta", SEA), sub_row("b", "tb", SEA[:3])]))


@pytest.mark.parametrize("options", [{"per": "stage"}, {"groups": 1}, {"bootstrap": -1}, {"by": "x"}, {"exclude": "x"},
                                     {"binning": "x"}])  # fmt: skip
def test_options_outside_their_range(options):
    with pytest.raises(errors.OptionError):
        iou_by_depth(similar_zoo(4), **options)


def test_same_seed_same_intervals_and_none_without_resamples():
    zoo = similar_zoo(12)
    a, b, c = (iou_by_depth(zoo, seed=s, bootstrap=50).iou for s in (1, 1, 2))
    assert np.array_equal(a.low, b.low, equal_nan=True) and not np.array_equal(a.low, c.low, equal_nan=True)
    assert np.array_equal(a.mean, c.mean, equal_nan=True)
    none = iou_by_depth(zoo, bootstrap=0)
    assert np.array_equal(none.iou.mean, a.mean, equal_nan=True) and np.isnan(none.iou.low).all()
    assert "nan" not in str(none)


def test_voted_against_random():
    channels = {"ref": [0, 1], "voted": [0, 1], "random": [1, 2], "other": [4, 5]}
    subs = [
        sub_row("ref", "t", SEA, channels={"a0": channels["ref"]}),
        sub_row("voted", "t", SEA, channels={"a0": channels["voted"]}, producer="vote", generation=1),
        sub_row("again", "t", SEA, channels={"a0": [5]}, producer="ifp", generation=1),
        sub_row("random", "t", SEA[::-1], channels={"a0": channels["random"]}, producer="random"),
        sub_row("other", "t2", FAMILIES["pets"], channels={"a0": channels["other"]}),
    ]  # fmt: skip
    zoo = make_snapshot(subs)
    against = iou_against(zoo, {"voted": ["voted"], "random": ["random"]})
    frame = against.to_pandas().set_index("set")
    assert frame.loc["voted", "iou"] == 1 and frame.loc["random", "iou"] == pytest.approx(1 / 3)
    assert frame.loc["voted", "floor"] == pytest.approx(random_floor(8, 2, 2))
    assert "voted (1)" in str(against)
    some = iou_against(zoo, {"random": ["random"], "nobody": []}, bootstrap=5)
    assert np.isnan(some.lines["nobody"].mean).all() and "nobody (0)" in str(some) and some.plot()
    alone = iou_against(zoo, ["random"])
    assert alone.lines["given"].mean[0, 0] == pytest.approx(1 / 3), "a voted sub-network is no reference"
    assert iou_against(zoo, ["voted"], reference=["other", "random"]).lines["given"].mean[0, 0] == pytest.approx(1 / 6)
    assert iou_against(zoo, ["voted", "other"], producer="ifp").without == 1
    with pytest.raises(errors.MixtureError, match="producer='ifp'"):
        iou_against(zoo, ["voted"])
    with pytest.raises(errors.EmptyZooError):
        iou_against(zoo, ["other"])
    with pytest.raises(errors.OptionError):
        iou_against(zoo, ["other"], reference="all")
