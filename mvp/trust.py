"""How far a vote can be trusted before it is fine-tuned: diagnostics, a chance level, a calibrated prediction."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mvp.agreement import weak
from zoo.errors import OptionError
from zoo.records import SubNetwork

if TYPE_CHECKING:
    from zoo import Zoo

LEAST = 10  # finished votes that a calibration needs
VOTE = ("entropy", "zero_share", "agreement", "coverage")
SCORES = ("score_best", "score_margin")


class WeakVoteWarning(UserWarning):
    """The voters agree no more than random ones would."""


@dataclass(frozen=True)
class Past:
    """A vote that was fine-tuned and measured.

    Attributes:
        metrics: Its metrics, "vote/..." among them.
        steps: Fine-tuning steps.
        n_classes: Classes of its task.
        accuracy: Test accuracy afterwards, 0..1.
    """

    metrics: Mapping[str, float]
    steps: int
    n_classes: int
    accuracy: float


@dataclass(frozen=True)
class Trust:
    """What is expected of a vote.

    Attributes:
        trusted: Whether nothing speaks against it.
        reasons: What speaks against it, in words.
        accuracy: Predicted test accuracy after the fine-tuning, 0..1; None when not calibrated.
        error: Leave-one-out root mean square error of such predictions; None when not calibrated.
        error_of_mean: The same error when the mean accuracy of the other votes is predicted: diagnostics say something
            in this zoo where `error` is smaller. None when not calibrated.
        records: Finished votes that it was calibrated on (or that there were, when too few).
        agreement: Mean IoU of pairs of voters.
        floor: Agreement that 95% of random voters stay below, see `mvp.agreement.agreement_floor`.
    """

    trusted: bool
    reasons: tuple[str, ...]
    accuracy: float | None
    error: float | None
    error_of_mean: float | None
    records: int
    agreement: float
    floor: float

    def __str__(self) -> str:
        parts = [f"agreement {self.agreement:.2f} (chance {self.floor:.2f})"]
        if self.accuracy is not None:
            parts.append(
                f"predicted accuracy {self.accuracy:.3f} ± {self.error:.3f} from {self.records} votes "
                f"(± {self.error_of_mean:.3f} by their mean)"
            )
        return f"vote {'trusted' if self.trusted else 'not trusted'}: {'; '.join([*parts, *self.reasons])}"


def check_agreement(agreement: float, floor: float, *, abstain: bool, stacklevel: int) -> None:
    """Warns about voters that agree no more than chance.

    Raises:
        OptionError: They do, and `abstain` is set.
    """
    if not weak(agreement, floor):
        return
    text = "the voters agree no more than random ones"
    if abstain:
        raise OptionError(
            text, got=f"a mean IoU of {agreement:.3f}", expected=f"more than {floor:.3f}",
            hint="Choose other voters (fewer, by another measure), or vote with abstain=False.",
        )  # fmt: skip
    warnings.warn(f"{text}: mean IoU {agreement:.3f}, chance {floor:.3f}", WeakVoteWarning, stacklevel=stacklevel + 1)


def trust(z: "Zoo", sub: SubNetwork, *, steps: int = 100) -> Trust:
    """What to expect of a vote before it is fine-tuned, from the votes that the zoo has seen through.

    Their diagnostics, steps and classes predict their accuracy by ridge regression (see `Calibration`). Only votes of
    the same base count, and of the same similarity measure, whose scores are on one scale. A vote is not trusted
    when its voters agree no more than chance, when the zoo holds fewer than `LEAST` finished votes, or when the
    prediction minus its error is no better than guessing.

    Args:
        z: The zoo.
        sub: From `mvp.vote`, or `mvp.vote_from`.
        steps: Fine-tuning steps planned.

    Raises:
        OptionError: The sub-network was not voted, or steps is negative.
    """
    if "vote/agreement" not in sub.metrics or steps < 0:
        raise OptionError(
            "no prediction", got=f"a sub-network of producer {sub.producer!r} and {steps} steps",
            expected="one from mvp.vote, and 0 steps or more",
        )  # fmt: skip
    agreement, floor = sub.metrics["vote/agreement"], sub.metrics.get("vote/random_floor", 0.0)
    seen = history(z, sub.base_id, sub.options.get("by"))
    found = Calibration.of(seen, scores=all(f"vote/{n}" in sub.metrics for n in SCORES))
    reasons = []
    if weak(agreement, floor):
        reasons.append("the voters agree no more than random ones")
    if found is None:
        reasons.append(f"not calibrated: {len(seen)} finished votes of this base and measure, {LEAST} needed")
        return Trust(False, tuple(reasons), None, None, None, len(seen), agreement, floor)
    n_classes = len(sub.task.labels)
    accuracy = found.predict(Past(sub.metrics, steps, n_classes, 0.0))
    if accuracy - found.error <= 1 / n_classes:
        reasons.append(f"the prediction is within its error of guessing ({1 / n_classes:.3f})")
    return Trust(
        not reasons, tuple(reasons), accuracy, found.error, found.error_of_mean, found.records, agreement, floor
    )


def history(z: "Zoo", base_id: str, by: str | None) -> list[Past]:
    """The voted, fine-tuned and measured sub-networks of a base whose voters were chosen by a measure, oldest first.

    Args:
        z: The zoo.
        base_id: Id of the base.
        by: Name of the measure; None = voters chosen by hand.
    """
    rows = z.sql(
        "select options, metrics, accuracy, len(labels) from subnetworks "
        "where base_id = ? and generation >= 1 and accuracy is not null order by created_at, id",
        [base_id],
    ).fetchall()
    found = []
    for text, metrics, accuracy, n_classes in rows:
        options = json.loads(text)
        tuned = options.get("finetune")
        if tuned and options.get("by") == by and "vote/agreement" in metrics:
            found.append(Past(metrics, int(tuned["steps"]), n_classes, accuracy))
    return found


@dataclass(frozen=True)
class Calibration:
    """Ridge regression of accuracy on what is known of a vote before it is fine-tuned.

    Features: entropy, zero share, agreement and coverage (1 - fallback share) of the vote, the similarity of the
    nearest voter and its margin over the last where they are known, log(1 + steps) and 1 / classes; each standardised.
    The penalty, of 10^-2..10^3, is the one of least leave-one-out error (RidgeCV of scikit-learn, in closed form; the
    standardisation is not repeated without the one left out).

    Attributes:
        names: Diagnostics used.
        centre: float64 (d,), means of the features.
        scale: float64 (d,), their standard deviations, 1 where they do not vary.
        weights: float64 (d,).
        intercept: Mean accuracy.
        penalty: The ridge's alpha.
        error: Leave-one-out root mean square error.
        error_of_mean: That of predicting the mean of the others.
        records: Votes it was fitted on.
    """

    names: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    penalty: float
    error: float
    error_of_mean: float
    records: int

    @classmethod
    def of(cls, past: Sequence[Past], *, scores: bool = True) -> "Calibration | None":
        """Fits it, with the similarities if `scores` and enough votes have them; None with fewer than `LEAST` votes."""
        for names in ((*VOTE, *SCORES), VOTE) if scores else (VOTE,):
            rows = [p for p in past if all(_metric(n) in p.metrics for n in names)]
            if len(rows) >= LEAST:
                return cls._fit(rows, names)
        return None

    @classmethod
    def _fit(cls, rows: Sequence[Past], names: tuple[str, ...]) -> "Calibration":
        from sklearn.linear_model import RidgeCV
        from sklearn.preprocessing import StandardScaler

        x, y = np.array([_features(p, names) for p in rows]), np.array([p.accuracy for p in rows])
        scaler = StandardScaler().fit(x)
        alphas = np.logspace(-2, 3, 16)
        ridge = RidgeCV(alphas, store_cv_results=True).fit(scaler.transform(x), y)
        squares = ridge.cv_results_.mean(axis=0)
        alone = (y.sum() - y) / (len(y) - 1)
        return cls(
            names, scaler.mean_, scaler.scale_, ridge.coef_, float(ridge.intercept_), float(ridge.alpha_),
            float(np.sqrt(squares.min())), float(np.sqrt(((y - alone) ** 2).mean())), len(rows),
        )  # fmt: skip

    def predict(self, vote: Past) -> float:
        """Accuracy in 0..1; the vote's own accuracy is not looked at."""
        x = (np.array(_features(vote, self.names)) - self.centre) / self.scale
        return float(np.clip(x @ self.weights + self.intercept, 0, 1))


def _metric(name: str) -> str:
    return "vote/fallback_share" if name == "coverage" else f"vote/{name}"


def _features(vote: Past, names: Sequence[str]) -> list[float]:
    own = [1 - vote.metrics[_metric(n)] if n == "coverage" else vote.metrics[_metric(n)] for n in names]
    return [*own, math.log1p(vote.steps), 1 / vote.n_classes]
