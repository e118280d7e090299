import warnings

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import zoo
from mvp import vote, vote_from
from mvp.trust import LEAST, Calibration, Past, WeakVoteWarning, check_agreement, history, trust
from zoo.errors import OptionError
from zoo.records import Task

pytestmark = pytest.mark.filterwarnings("ignore::mvp.trust.WeakVoteWarning")

TASK = Task(labels=("apple", "pear", "truck"), dataset="tiny")


def past(n, seed=0, *, scores=True, steps=30, n_classes=5):
    """Votes whose accuracy is a line in their agreement, with noise."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        names = ["entropy", "zero_share", "agreement", "fallback_share", *(["score_best", "score_margin"] * scores)]
        metrics = {f"vote/{name}": float(rng.random()) for name in names}
        accuracy = 0.3 + 0.5 * metrics["vote/agreement"] + 0.02 * rng.normal()
        rows.append(Past(metrics, steps, n_classes, float(np.clip(accuracy, 0, 1))))
    return rows


def table(rows, scores):
    names = ["entropy", "zero_share", "agreement", "fallback_share", *(["score_best", "score_margin"] * scores)]
    sign = np.array([-1 if n == "fallback_share" else 1 for n in names])
    x = np.array([[r.metrics[f"vote/{n}"] for n in names] for r in rows]) * sign + (sign < 0)
    more = np.array([[np.log(1 + r.steps), 1 / r.n_classes] for r in rows])
    return np.hstack([x, more])


@pytest.mark.parametrize("scores", [True, False])
def test_a_prediction_is_ridge_regression_and_its_error_is_of_votes_left_out(scores):
    rows = past(14, scores=scores)
    found = Calibration.of(rows, scores=True)
    x, y = table(rows, scores), np.array([r.accuracy for r in rows])
    std = x.std(0)
    x = (x - x.mean(0)) / np.where(std > 1e-12, std, 1)
    assert len(found.names) == (6 if scores else 4) and found.records == 14

    def left_out(alpha):
        rest = [[j for j in range(14) if j != i] for i in range(14)]
        return np.sqrt(np.mean([
            (Ridge(alpha).fit(x[r], y[r]).predict(x[[i]])[0] - y[i]) ** 2 for i, r in enumerate(rest)
        ]))  # fmt: skip

    assert found.error == pytest.approx(left_out(found.penalty), rel=1e-6)
    assert found.error <= min(left_out(alpha) for alpha in np.logspace(-2, 3, 16)) * (1 + 1e-9)
    means = [np.mean([b for j, b in enumerate(y) if j != i]) for i in range(14)]
    assert found.error_of_mean == pytest.approx(np.sqrt(np.mean((y - means) ** 2)))
    assert found.error < found.error_of_mean / 2
    plain = Ridge(found.penalty).fit(x, y).predict(x)
    assert [found.predict(r) for r in rows] == pytest.approx(plain.clip(0, 1))


def test_too_few_votes_and_missing_similarities():
    assert Calibration.of([]) is None and Calibration.of(past(LEAST - 1)) is None
    mixed = past(LEAST - 1) + past(3, 1, scores=False)
    assert len(Calibration.of(mixed).names) == 4  # too few with similarities: these are left out
    assert len(Calibration.of(past(LEAST) + past(3, 1, scores=False)).names) == 6
    assert len(Calibration.of(past(LEAST), scores=False).names) == 4


def test_steps_and_classes_count_and_predictions_stay_in_range():
    rows = [Past(p.metrics, s, c, 0.1 * np.log(1 + s)) for p, s, c in zip(past(20), [10, 100] * 10, [5] * 20)]
    found = Calibration.of(rows)
    new = past(1, 3)[0]
    few, many = (found.predict(Past(new.metrics, s, 5, 0.0)) for s in (10, 100))
    assert few < many
    assert found.predict(Past(new.metrics, 10**9, 5, 0.0)) <= 1


def test_equal_accuracies_are_predicted():
    found = Calibration.of([Past(p.metrics, 30, 5, 0.7) for p in past(12)])
    assert found.predict(past(1, 5)[0]) == pytest.approx(0.7) and found.error == pytest.approx(0, abs=1e-9)


@pytest.fixture
def z(tiny_cnn, tiny_sub, tmp_path):
    z = zoo.open(tmp_path / "z.zoo")
    labels = [("dog", "cat", "horse"), ("dog", "cat", "apple"), ("apple", "pear", "dog"), ("truck", "horse", "pear")]
    shared = {"a0": [0, 1, 2, 3], "a1": [0, 1, 2, 3, 4], "a2": [0, 1, 2, 3, 4, 5], "a3": [0, 1, 2, 3]}
    z.add_many([tiny_sub(tiny_cnn, own, seed=i, channels=shared) for i, own in enumerate(labels)])
    return z


def finish(z, rebadge, n, *, accuracy=0.9, steps=30):
    """Votes as `mvp.finetune` leaves them, without the training."""
    subs = []
    for seed in range(n):
        sub = vote(z, TASK, k=2, seed=seed)
        more = {**sub.options, "finetune": {"steps": steps}}
        subs.append(rebadge(sub, options=more, metrics={**sub.metrics, "accuracy": accuracy + seed / 1000}))
    z.add_many(subs)


def test_a_zoo_is_not_calibrated_before_it_has_seen_enough_votes(z, rebadge):
    sub = vote(z, TASK, k=2, seed=99)
    first = trust(z, sub)
    assert not first.trusted and first.accuracy is None and "0 finished votes" in str(first)
    finish(z, rebadge, LEAST - 1)
    z.add(sub)  # not fine-tuned: does not count
    assert trust(z, sub).records == LEAST - 1 and trust(z, sub).accuracy is None
    z.add(rebadge(sub, options={**sub.options, "finetune": {"steps": 30}}, metrics={**sub.metrics, "accuracy": 0.9}))
    got = trust(z, sub, steps=30)
    assert got.trusted and not got.reasons and got.accuracy == pytest.approx(0.904, abs=0.01) and got.records == LEAST
    assert "predicted accuracy 0.9" in str(got) and got.agreement == 1


def test_only_votes_of_the_base_and_measure_count(z, rebadge, tiny_base, tiny_sub):
    finish(z, rebadge, 3)
    base = z.base()
    assert [p.steps for p in history(z, base.id, "wup")] == [30] * 3
    assert history(z, base.id, "leep") == history(z, base.id, None) == []
    z.add(tiny_sub(tiny_base("tiny_cnn", 5)))
    assert history(z, z.bases()[1].id, "wup") == [] and len(history(z, base.id, "wup")) == 3
    assert history(z, base.id, "wup")[0].metrics["vote/score_best"] <= 1


def test_predictions_no_better_than_guessing_are_not_trusted(z, rebadge):
    finish(z, rebadge, LEAST, accuracy=1 / 3 - 0.01)
    got = trust(z, vote(z, TASK, k=2, seed=99), steps=30)
    assert not got.trusted and "guessing" in got.reasons[0] and got.accuracy is not None


def test_voters_that_agree_by_chance_are_not_trusted(z, tiny_cnn, tiny_sub):
    apart = [tiny_sub(tiny_cnn, channels={"a0": [i]}, keep=0.1, seed=i) for i in range(2)]
    got = trust(z, vote_from(apart, TASK))
    assert not got.trusted and "random" in got.reasons[0] and got.agreement < got.floor


def test_what_was_not_voted_has_no_prediction(z, tiny_cnn, tiny_sub):
    with pytest.raises(OptionError, match=r"mvp\.vote"):
        trust(z, tiny_sub(tiny_cnn))
    with pytest.raises(OptionError):
        trust(z, vote(z, TASK, k=2), steps=-1)


def test_the_warning_points_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_agreement(0.1, 0.2, abstain=False, stacklevel=1)
        check_agreement(0.3, 0.2, abstain=True, stacklevel=1)
    assert [w.category for w in caught] == [WeakVoteWarning] and issubclass(WeakVoteWarning, UserWarning)
    assert caught[0].filename == __file__
