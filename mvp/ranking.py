"""What `mvp measures` found: a run a block of voters, and how well each measure's order is the accuracies' order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.bootstrap import Estimate, drawn_targets, estimate, task_weights

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RESAMPLES = 2000


@dataclass(frozen=True)
class Run:
    """One block of voters of one measure's ranking, and what its vote gave.

    Attributes:
        measure: The measure.
        task: Id of the held-out task.
        labels: Its class names, joined by commas.
        block: Place along the ranking, 0 = the nearest.
        score: Mean of the voters' scores by the measure.
        voters: Their ids, sorted, joined by commas.
        keep: Keep ratio of the vote.
        seed: Seed of vote, head and batches.
        steps: Fine-tuning steps.
        accuracy: Test accuracy in 0..1 after them.
        seconds: Wall time of vote and fine-tuning (of the run that made it, where another measure chose the same).
    """

    measure: str
    task: str
    labels: str
    block: int
    score: float
    voters: str
    keep: float
    seed: int
    steps: int
    accuracy: float
    seconds: float

    @property
    def made(self) -> tuple[Any, ...]:
        """What decides the accuracy."""
        return (self.task, self.voters, self.keep, self.seed, self.steps)


@dataclass(frozen=True)
class Ranking:
    """What each measure foretold, and what came.

    Attributes:
        runs: Every block of every measure, task and seed.
        left_out: {measure that could not be asked: why}.
    """

    runs: tuple[Run, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def to_pandas(self) -> "pd.DataFrame":
        """One row a run."""
        import pandas as pd

        return pd.DataFrame([vars(r) for r in self.runs])

    def correlations(self) -> "pd.DataFrame":
        """One row a measure and task: `spearman` and `kendall` over its blocks, accuracies averaged over seeds.

        NaN where all blocks have the same score, or all the same accuracy: there is no order to compare then.
        """
        import pandas as pd

        rows = []
        for (measure, task), runs in self.to_pandas().groupby(["measure", "task"], sort=False):
            means = runs.groupby("block")[["score", "accuracy"]].mean()
            spearman, kendall = rank_correlations(means.score.to_numpy(), means.accuracy.to_numpy())
            rows.append({"measure": measure, "task": task, "spearman": spearman, "kendall": kendall})
        return pd.DataFrame(rows)

    def summary(self) -> "pd.DataFrame":
        """One row a measure, the best Spearman correlation first: both correlations as means over tasks with their 95%
        bootstrap intervals over tasks (`spearman`, `spearman_low`, `spearman_high`, ...), how many `tasks` have one,
        and the accuracy after voting by the `nearest` and the `farthest` block.
        """
        import pandas as pd

        table, runs = self.correlations(), self.to_pandas()
        columns: dict[str, Any] = {"measure": list(dict.fromkeys(table.measure))}
        for name in ("spearman", "kendall"):
            wide = table.pivot(index="task", columns="measure", values=name)[columns["measure"]]
            found = over_tasks(wide.to_numpy(), list(wide.index))
            columns |= {name: found.mean[0], f"{name}_low": found.low[0], f"{name}_high": found.high[0]}
            columns["tasks"] = found.targets[0]
        mean = runs.groupby(["measure", "block"]).accuracy.mean()
        columns["nearest"] = [mean[m, 0] for m in columns["measure"]]
        columns["farthest"] = [mean[m, runs.block.max()] for m in columns["measure"]]
        return pd.DataFrame(columns).sort_values("spearman", ascending=False, kind="stable", ignore_index=True)

    def __str__(self) -> str:
        from zoo.table import text_table

        frame, runs = self.summary(), self.to_pandas()

        def interval(name: str) -> list[str]:
            return [
                "-" if math.isnan(mean) else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                for mean, low, high in zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
            ]

        columns: dict[str, list[Any]] = {
            "measure": list(frame.measure), "Spearman": interval("spearman"), "Kendall": interval("kendall"),
            "tasks": list(frame.tasks), "nearest %": [f"{a * 100:.1f}" for a in frame.nearest],
            "farthest %": [f"{a * 100:.1f}" for a in frame.farthest],
        }  # fmt: skip
        k = len(runs.voters.iloc[0].split(","))
        title = (
            f"rank correlation of a measure with accuracy after {runs.steps.iloc[0]} steps, {runs.block.max() + 1} "
            f"blocks of {k} voters along its ranking; mean over {runs.task.nunique()} tasks x {runs.seed.nunique()} "
            "seeds, 95% interval over tasks"
        )
        notes = [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return text_table(columns, title=title, notes=notes)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Left: accuracy along each measure's ranking. Right: its rank correlation with the 95% interval over tasks."""
        from matplotlib.figure import Figure

        frame, runs = self.summary(), self.to_pandas()
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = {name: f"C{i}" for i, name in enumerate(frame.measure)}
        for name in frame.measure:
            mean = runs[runs.measure == name].groupby("block").accuracy.mean() * 100
            left.plot(mean.index + 1, mean, "o-", label=name, color=colours[name])
        left.set_xlabel("block of voters, 1 = nearest")
        left.set_ylabel(f"test accuracy after {runs.steps.iloc[0]} steps, %")
        left.set_xticks(range(1, runs.block.max() + 2))
        left.grid(alpha=0.3)
        left.legend(frameon=False, fontsize=8)
        for y, row in enumerate(frame.itertuples()):
            right.plot([row.spearman_low, row.spearman_high], [y, y], color=colours[row.measure])
            right.plot([row.spearman], [y], "o", color=colours[row.measure])
        right.axvline(0, color="black", linewidth=0.8)
        right.set_yticks(range(len(frame)), list(frame.measure))
        right.invert_yaxis()
        right.set_xlabel("Spearman's rank correlation, 95% interval over tasks")
        right.grid(alpha=0.3)
        figure.suptitle("Does a measure foretell what a vote gives?")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def rank_correlations(scores: np.ndarray, accuracies: np.ndarray) -> tuple[float, float]:
    """Spearman's rho and Kendall's tau-b of two float (n,), each in [-1, 1]; NaN when either has a single value."""
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        return math.nan, math.nan
    return float(spearmanr(scores, accuracies).statistic), float(kendalltau(scores, accuracies).statistic)


def over_tasks(values: np.ndarray, tasks: Sequence[str]) -> Estimate:
    """Means over tasks of float (tasks, measures), NaN = none, with 95% intervals from drawing the tasks again."""
    weights = task_weights(tasks, RESAMPLES, seed=0)
    return estimate(values[None], drawn_targets(values[None], weights))
