import numpy as np
import pytest

from mvp.producers import prune
from mvp.producers.classifier_mask import Classifier
from mvp.producers.classifier_mask_sources import ClassifierMaskSources
from mvp.producers.intersection import combine
from mvp.subnetwork import task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

FAST = {"steps": 6, "tune_steps": 3, "batch_size": 16}
SOURCES = [tiny.task(3, 4, 5), tiny.task(7, 8, 9)]


def run(*, keep=0.3, seed=0, sources=SOURCES, data=None, **options):
    options = {**FAST, **options}
    data = data or tiny.task()
    return prune(
        tiny.base(), data, producer="classifier_mask_sources", keep=keep, seed=seed, sources=sources, **options
    )


@pytest.fixture
def log(monkeypatch):
    """("learn", network, labels, alive, scores) and ("tune", network, labels, masks, steps), in order."""
    events = []
    learn, tune = Classifier.learn, Classifier.tune

    def spy_learn(own, data, counts, *, seed, alive=None):
        start = own.model.fc.weight.detach().clone()
        scores = learn(own, data, counts, seed=seed, alive=alive)
        events.append(("learn", own, data.labels, alive, scores["fc.weight"].clone(), start))
        return scores

    def spy_tune(own, data, masks, *, seed, steps=None):
        events.append(("tune", own, data.labels, masks["fc.weight"].clone(), steps))
        tune(own, data, masks, seed=seed, steps=steps)

    monkeypatch.setattr(Classifier, "learn", spy_learn)
    monkeypatch.setattr(Classifier, "tune", spy_tune)
    return events


@pytest.mark.parametrize("method", ["threshold", "l0"])
def test_the_intersection_of_each_tasks_own_mask_topped_up(method, log):
    sub = run(method=method)
    learned = [e for e in log if e[0] == "learn"]
    assert [e[2] for e in learned] == [d.labels for d in (*SOURCES, tiny.task())]
    assert len({id(e[1]) for e in learned}) == 3 and all(np.array_equal(e[5], learned[0][5]) for e in learned)
    masks, strength = [], np.zeros(24)
    for event in learned:
        scores = event[4].double().numpy().ravel()
        threshold = np.sort(scores)[-7]  # round(0.3 * 24)
        masks.append(scores >= threshold)
        strength += scores / scores.max()
    votes = np.sum(masks, 0)
    got = sub.element_masks["fc.weight"].ravel()
    assert got.sum() == 7 and got[votes == 3].all()
    assert np.flatnonzero(got).tolist() == combine(votes, strength, 3, 7).tolist()
    assert sub.metrics["kept_by_all"] == pytest.approx((votes == 3).sum() / 7)
    assert log[-1][0] == "tune" and log[-1][1] is learned[-1][1] and log[-1][2] == tiny.task().labels
    assert sub.metrics["steps"] == 3 * 6 + 3


@pytest.mark.parametrize("method", ["threshold", "l0"])
def test_meta_pruning_cuts_on_from_source_to_source_and_only_tunes_on_the_task(method, log):
    sub = run(over="meta", method=method)
    assert [(e[0], e[2]) for e in log] == [
        ("learn", SOURCES[0].labels), ("tune", SOURCES[0].labels), ("learn", SOURCES[1].labels),
        ("tune", SOURCES[1].labels), ("tune", tiny.task().labels),
    ]  # fmt: skip
    assert len({id(e[1]) for e in log}) == 1
    first, second, last = (e[3] for e in log if e[0] == "tune")
    assert int(first.sum()) == round(24 * 0.3**0.5) and int(second.sum()) == 7
    assert not (second & ~first).any() and (second == last).all()
    alive = [e[3]["fc.weight"] for e in log if e[0] == "learn"]
    assert alive[0].all() and (alive[1] == first).all()
    assert np.array_equal(sub.element_masks["fc.weight"], last.numpy())
    assert not sub.weights["fc.weight"][~last.numpy()].any()
    # Each task starts with a head of its own, the task with the seed's.
    assert not np.array_equal(log[0][5], log[2][5])
    assert sub.metrics["steps"] == 2 * (6 + 3) + 6 + 3


def test_meta_pruning_hands_the_trained_network_on_with_the_tasks_own_head():
    sub = run(over="meta", steps=1, tune_steps=0, lr=0.0, seed=5)
    head = task_model(tiny.base(), 3, seed=5).fc.weight.detach().numpy()
    np.testing.assert_array_equal(sub.weights["fc.weight"], head * sub.element_masks["fc.weight"])
    trained = run(over="meta", tune_steps=0)
    assert not np.array_equal(trained.weights["conv1.weight"], tiny.base().weights["conv1.weight"])


@pytest.mark.parametrize("over", ["intersection", "meta"])
def test_it_learns_the_task(over):
    assert run(over=over, steps=60, tune_steps=40, keep=0.5).accuracy > 0.8


def test_tasks_of_other_numbers_of_classes():
    with pytest.raises(OptionError, match=r"number of classes; got 4 in a source; expected 3"):
        run(sources=[SOURCES[0], tiny.task(3, 4, 5, 6)])


def test_every_wrong_option_is_named():
    with pytest.raises(OptionError) as error:
        ClassifierMaskSources(over="task", method="l1", steps=0)
    assert all(name in str(error.value) for name in ("over", "method", "steps:"))
