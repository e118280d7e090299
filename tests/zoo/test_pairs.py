"""Groups and shared classes of pairs, in blocks and at once, against loops."""

import numpy as np
import pytest
from fakes import FAMILIES, make_snapshot, score_row, similar_zoo, sub_row

import zoo.errors as errors
import zoo.overlap as overlap
from zoo.pairs import pair_groups
from zoo.query import groups_of
from zoo.rows import Rows
from zoo.taskwup import task_wup

SEA = FAMILIES["sea"]


def naive_shared(a, b):
    if None in (a["dataset"], b["dataset"]):
        return len(set(a["labels"]) & set(b["labels"]))
    return len({(a["dataset"], x) for x in a["labels"]} & {(b["dataset"], x) for x in b["labels"]})


def pairs_of(snapshot, exclude, by="wup"):
    rows = Rows(snapshot)
    return pair_groups(rows, np.arange(len(rows)), by, 4, "equal_width", exclude)


@pytest.mark.parametrize("exclude", [None, "same_classes", "same_task", "overlap"])
@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_groups_and_shared_classes_equal_loops(exclude, at_once, monkeypatch):
    monkeypatch.setattr(overlap, "PAIRS_AT_ONCE", at_once)
    subs = similar_zoo(13).subnetworks.to_pylist()
    subs[1] |= {"dataset": None}
    subs[2] |= {"dataset": "another"}
    subs[3] |= {"labels": subs[4]["labels"][::-1], "synsets": subs[4]["synsets"][::-1]}
    found = pairs_of(make_snapshot(subs), exclude)
    for t, target in enumerate(subs):
        shared = [naive_shared(target, s) for s in subs]
        assert found.shared[t].tolist() == shared
        others = []
        for j, other in enumerate(subs):
            left_out = {
                None: False,
                "same_classes": shared[j] == len(target["labels"]) == len(other["labels"]),
                "same_task": other["task_id"] == target["task_id"],
                "overlap": shared[j] > 0,
            }
            if j != t and not left_out[exclude]:
                others.append(j)
        expected = np.zeros(len(subs), int)
        expected[others] = groups_of([task_wup(target["synsets"], subs[j]["synsets"]) for j in others], 4)
        assert found.group[t].tolist() == expected.tolist()
    everything = slice(0, len(subs))
    assert (found.by_shared(everything) == np.where(found.group > 0, found.shared + 1, 0)).all()
    assert found.most() == found.by_shared(everything).max()
    assert found.group.dtype == np.uint8


def test_missing_scores_say_how_far_the_study_got(monkeypatch):
    subs = [sub_row(i, f"t{i}", SEA[n:], channels={"a0": [0]}) for n, i in enumerate("abc")]
    zoo = make_snapshot(subs, [score_row("a", "tb", -1.0), score_row("c", "tb", -2.0)])
    with pytest.raises(errors.MissingScoresError, match="2 of 3 target tasks lack scores for by='leep'\n"):
        pairs_of(zoo, None, "leep")
    monkeypatch.setattr(overlap, "PAIRS_AT_ONCE", 3)
    with pytest.raises(errors.MissingScoresError, match=r"1 of 1 target tasks.*the first 1 of 3"):
        pairs_of(zoo, None, "leep")


def test_an_unknown_exclude_is_refused():
    with pytest.raises(errors.OptionError, match="same_classes"):
        pairs_of(similar_zoo(4), "x")
