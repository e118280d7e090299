"""Which measure of similarity foretells what a vote gives? `mvp measures`.

For each held-out task each measure ranks the stored sub-networks. Along this ranking `groups` disjoint blocks of k
voters are taken at equal distances, from the k nearest to the k farthest; each block votes, and its vote is fine-tuned
a few steps. A measure is good when its score of a block (the mean of the voters' scores) and the accuracy that the
block's vote reaches come in the same order: Spearman's and Kendall's (tau-b) rank correlation over a task's blocks.

No paper defines this comparison. Blocks are taken along each measure's own ranking, and not at random for all measures
together, because the best and the worst of sixty are what a zoo is asked for, and random blocks hardly differ. A set of
voters that two measures choose is fine-tuned once.
"""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mvp.data import Data
from mvp.finetune import finetune
from mvp.progress import bar
from mvp.runfile import append_run, read_runs
from mvp.trust import WeakVoteWarning
from mvp.vote import vote_from
from zoo.bootstrap import Estimate, drawn_targets, estimate, task_weights
from zoo.errors import EmptyZooError, MissingScoresError, NotFoundError, OptionError, UnknownLabelsError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from zoo import Neighbours, Zoo

# Voters as `mvp.vote` takes them, and none that was voted itself.
MAY_VOTE = "generation = 0 and kind = 'structured' and mode = 'coupled' and init = 'pretrained'"
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

    def plot(self, path: "str | Path | None" = None) -> "Figure":
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


def rank(
    z: "Zoo",
    tasks: Sequence[Data],
    *,
    by: Sequence[str],
    optional: bool = False,
    k: int = 3,
    groups: int = 5,
    steps: int = 30,
    seeds: Sequence[int] = (0,),
    keep: float | None = None,
    base: str | None = None,
    out: "str | Path | None" = None,
    device: str | None = None,
    progress: bool = True,
) -> Ranking:
    """Votes from blocks along each measure's ranking, fine-tunes the votes, correlates; see the module.

    Sub-networks with a task's own classes are left out, as in `mvp.vote`.

    Args:
        z: The zoo, with the scores of the tasks (`mvp.score`) that the measures read.
        tasks: Held-out tasks.
        by: Names of the measures.
        optional: Leave out a measure that cannot be asked for some task (no scores, labels without a noun) and say so
            in the result; it is an error otherwise.
        k: Voters of a block.
        groups: Blocks along a ranking, at least 2; they are disjoint.
        steps: Fine-tuning steps, cosine to 0, batch 128.
        seeds: Seeds of vote, head and batches.
        keep: Keep ratio of the votes; the voters' own when they agree and None is given.
        base: Id of the base when the zoo has several.
        out: CSV file; each run is appended as it is made, and a vote that it holds is not made again.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        OptionError: No tasks, measures or seeds; k, groups or steps out of range; no such measure.
        EmptyZooError: Fewer than k * groups sub-networks may vote for a task.
        MissingScoresError, UnknownLabelsError, NotFoundError: A measure cannot be asked, and `optional` is False.
        DataError: The CSV file holds something else.
    """
    least = (("k", k, 1), ("groups", groups, 2), ("steps", steps, 0))
    problems = [f"{name}: got {n}, expected at least {smallest}" for name, n, smallest in least if n < smallest]
    problems += [f"no {name}" for name, n in (("tasks", tasks), ("measures", by), ("seeds", seeds)) if not len(n)]
    if problems:
        raise OptionError("nothing to rank", problems=problems)
    chosen, found = z.base(base), list[tuple[Data, str, "Neighbours"]]()
    left_out: dict[str, str] = {}
    for measure in dict.fromkeys(by):
        rankings = []
        try:
            for data in tasks:
                ranking = z.nearest(data.task, k=None, by=measure, base=chosen.id, where=MAY_VOTE)
                rankings.append((data, measure, ranking))
                if len(ranking) < k * groups:
                    raise EmptyZooError(
                        f"{len(ranking)} tasks of the zoo may vote for {', '.join(data.labels)}, by {measure}",
                        expected=f"{k * groups} or more: {groups} disjoint blocks of {k}",
                    )
        except (MissingScoresError, UnknownLabelsError, NotFoundError) as error:
            if not optional:
                raise
            left_out[measure] = error.what
            continue
        found += rankings
    if not found:
        raise OptionError("none of the measures can be asked", problems=[f"{m}: {w}" for m, w in left_out.items()])
    held = read_runs(Run, out)
    made, written = {run.made: run for run in held}, set(held)
    runs = []
    with bar(progress=progress) as shown:
        line = shown.add_task("measures", total=len(found) * len(seeds) * groups)
        for seed in seeds:
            for data, measure, ranking in found:
                shown.update(line, description=measure)
                for block, start in enumerate(np.linspace(0, len(ranking) - k, groups).round().astype(int)):
                    run = _run(z, data, measure, block, ranking[start : start + k], keep, seed, steps, device, made)
                    made[run.made] = run
                    if run not in written:
                        append_run(run, out)
                    runs.append(run)
                    shown.advance(line)
    return Ranking(tuple(runs), left_out)


def _run(
    z: "Zoo", data: Data, measure: str, block: int, voters: "Neighbours", keep: float | None, seed: int, steps: int,
    device: str | None, made: dict[tuple[Any, ...], Run],
) -> Run:  # fmt: skip
    ids = sorted(voters.id)
    share = voters[0].keep if keep is None else keep
    key = (data.task.id, ",".join(ids), share, seed, steps)
    if key in made:
        accuracy, seconds = made[key].accuracy, made[key].seconds
    else:
        started = time.perf_counter()
        with warnings.catch_warnings():
            # Far voters are asked on purpose, to see what comes of them.
            warnings.simplefilter("ignore", WeakVoteWarning)
            sub = vote_from([z.get(i) for i in ids], data.task, keep=keep, seed=seed)
        tuned = finetune(sub, data, steps=steps, seed=seed, device=device, progress=False)
        accuracy, seconds = tuned.accuracy or 0.0, time.perf_counter() - started
    return Run(
        measure, data.task.id, ",".join(data.labels), block, float(np.mean(voters.score)), key[1], share, seed, steps,
        accuracy, seconds,
    )  # fmt: skip


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
