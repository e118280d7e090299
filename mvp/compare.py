"""What a start is worth: voted, far, random and long-pruned sub-networks, fine-tuned equally on held-out tasks."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mvp.data import Data
from mvp.finetune import make_optimizer, run_steps
from mvp.producers import prune
from mvp.progress import bar
from mvp.runfile import append_run, read_runs
from mvp.subnetwork import build
from mvp.train import InputSpec, accuracy, pick_device, place
from mvp.trust import WeakVoteWarning
from mvp.vote import PRUNED, vote_from
from zoo.errors import EmptyZooError, OptionError
from zoo.records import Base, SubNetwork

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from zoo import Zoo

RANDOM = "random"


class Plan(NamedTuple):
    """One fine-tuning, as far as it decides what is measured."""

    task: str
    seed: int
    start: str
    until: int
    made_of: str


@dataclass(frozen=True)
class Run:
    """What was measured along one fine-tuning.

    Attributes:
        task: Class names, joined by commas.
        seed: Seed of vote, head and batches.
        start: "nearest 3", "random", ...
        until: Steps of the whole run, which its learning rate follows.
        made_of: Id of the sub-network that it started from; of "IFP" that of the base.
        steps: When accuracy was measured.
        accuracy: On the test split, in 0..1.
        seconds: Since the start of the run.
    """

    task: str
    seed: int
    start: str
    until: int
    made_of: str
    steps: int
    accuracy: float
    seconds: float

    @property
    def plan(self) -> Plan:
        """What decided it."""
        return Plan(self.task, self.seed, self.start, self.until, self.made_of)


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, paired: equal tasks, seeds, heads (up to the channels kept) and batches.

    Attributes:
        runs: Every measurement.
        by: Similarity measure of the neighbours.
        best: For each task, the sub-network voted by the first "nearest" start at the first seed, before fine-tuning.
    """

    runs: tuple[Run, ...]
    by: str
    best: tuple[SubNetwork, ...] = field(default=(), repr=False)

    def to_pandas(self) -> "pd.DataFrame":
        """One row a run."""
        import pandas as pd

        return pd.DataFrame([vars(r) for r in self.runs])

    def difference(self, start: str, other: str, steps: int, *, resamples: int = 10_000) -> tuple[float, float, float]:
        """Mean paired difference in accuracy (start - other) with its 95% bootstrap interval over tasks.

        Seeds of a task are averaged first: tasks are what is drawn, so tasks are what is resampled.

        Raises:
            OptionError: One of them was not measured after that many steps.
        """
        measured = {(r.start, r.steps) for r in self.runs}
        if missing := [s for s in (start, other) if (s, steps) not in measured]:
            raise OptionError(
                f"not measured after {steps} steps: {', '.join(missing)}",
                expected="; ".join(f"{s} after {n}" for s, n in sorted(measured)),
            )  # fmt: skip
        table = self.to_pandas()
        table = table[table.steps == steps].pivot_table(index="task", columns="start", values="accuracy")
        gaps = (table[start] - table[other]).to_numpy()
        rng = np.random.default_rng(0)
        means = gaps[rng.integers(len(gaps), size=(resamples, len(gaps)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(gaps.mean()), float(low), float(high)

    def summary(self) -> "pd.DataFrame":
        """Rows: starts. Columns: for each number of steps "mean +- sd" of accuracy in %, sd over tasks and seeds."""
        import pandas as pd

        table = self.to_pandas()
        grouped = table.groupby(["start", "steps"], sort=False).accuracy.agg(["mean", "std"]) * 100
        cells = grouped.apply(lambda row: f"{row['mean']:.1f} ± {row['std']:.1f}", axis=1)
        frame = pd.DataFrame(cells.unstack("steps"))
        return frame.reindex(list(dict.fromkeys(table.start))).fillna("")

    def __str__(self) -> str:
        from zoo.table import text_table

        frame = self.summary()
        columns: dict[str, list[Any]] = {"start": list(frame.index)}
        for column in frame.columns:
            columns[f"after {column} steps, %"] = list(frame[column])
        tasks, seeds = len({r.task for r in self.runs}), len({r.seed for r in self.runs})
        notes = []
        for start in frame.index:
            if start.startswith("nearest"):
                for steps in sorted({r.steps for r in self.runs if r.start == RANDOM}):
                    mean, low, high = self.difference(start, RANDOM, steps)
                    notes.append(
                        f"{start} - random after {steps} steps: {mean * 100:+.1f} points, 95% interval "
                        f"[{low * 100:+.1f}, {high * 100:+.1f}] over tasks"
                    )
        title = f"test accuracy, mean ± sd over {tasks} tasks x {seeds} seeds, neighbours by {self.by}"
        return text_table(columns, title=title, notes=notes)

    def plot(self, path: str | None = None) -> "Figure":
        """Mean accuracy against steps, a line a start, bars of one standard error over tasks (MVP, Fig. 4)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.add_subplot()
        table = self.to_pandas()
        colours = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#999999", "#CC79A7", "#D55E00"]
        for start, colour in zip(dict.fromkeys(table.start), cycle(colours)):
            rows = table[table.start == start].groupby(["task", "steps"]).accuracy.mean().groupby("steps")
            mean, error = rows.mean() * 100, (rows.std() / np.sqrt(rows.count())).fillna(0) * 100
            fmt = "o-" if len(mean) > 1 else "s"
            ax.errorbar(mean.index, mean, error, fmt=fmt, label=start, color=colour, capsize=3)
        ax.set_xticks(sorted(set(table.steps)))
        ax.set_xlabel("fine-tuning steps")
        ax.set_ylabel("test accuracy, %")
        ax.set_title(f"From which start? Neighbours by {self.by}", loc="left")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def compare(
    z: "Zoo",
    tasks: Sequence[Data],
    *,
    by: str = "wup",
    nearest: Sequence[int] = (3, 1, 5),
    farthest: Sequence[int] = (3,),
    steps: Sequence[int] = (10, 30, 100),
    seeds: Sequence[int] = (0, 1, 2),
    base: str | None = None,
    long_steps: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Fine-tunes each start on each held-out task with each seed, batch 128, one cosine schedule to the last of
    `steps`.

    The starts keep the same number of channels on every axis and train on the same batches. Sub-networks of the zoo
    with the task's own classes are left out.

    Args:
        z: The zoo; LEEP scores of the tasks must be stored for by="leep" (`mvp.score`).
        tasks: Held-out tasks.
        by: Similarity measure.
        nearest: Vote of the k nearest tasks, for each k here.
        farthest: Vote of the k farthest tasks, for each k here.
        steps: When accuracy is measured along the run.
        seeds: Seeds of vote, head and batches.
        base: Id of the base when the zoo has several.
        long_steps: Also prune each task from the base with IFP for this many steps, as reference.
        out: CSV file; what a run measured is appended when it ends, and runs that it holds are not made again.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        OptionError: No tasks, steps or seeds.
        EmptyZooError: Fewer candidates than voters.
        DataError: The CSV file is not one of these.
    """
    voters = [*nearest, *farthest]
    if not tasks or not steps or not seeds or not voters or min(steps) < 1 or min(voters) < 1:
        raise OptionError(
            "nothing to compare", expected="a task, a seed, a number of steps >= 1 and a number of voters >= 1, or more"
        )
    chosen, where = z.base(base), pick_device(device)
    file = _File(out)
    runs: list[Run] = []
    best = []
    per_task = len(seeds) * (len(nearest) + len(farthest) + 1 + (long_steps is not None))
    with bar(progress=progress) as shown:
        line = shown.add_task("compare", total=len(tasks) * per_task)
        for data in tasks:
            ranked = z.nearest(data.task, k=None, by=by, base=chosen.id, where=PRUNED).id
            if len(ranked) < max(voters):
                raise EmptyZooError(
                    f"{len(ranked)} tasks of the zoo may vote for {', '.join(data.labels)}",
                    expected=f"{max(voters)} or more",
                )
            for seed in seeds:
                starts = {f"nearest {k}": _voted(z, ranked[:k], data, seed) for k in nearest}
                starts |= {f"farthest {k}": _voted(z, ranked[-k:], data, seed) for k in farthest}
                keep = next(iter(starts.values())).keep
                starts[RANDOM] = prune(chosen, data, producer="random", keep=keep, seed=seed, device=device)
                if seed == seeds[0]:
                    best.append(next(iter(starts.values())))
                task = ",".join(data.labels)
                for name, sub in starts.items():
                    plan = Plan(task, seed, name, max(steps), sub.id)
                    runs += file.get(plan, steps) or file.put(_curve(plan, sub, data, sorted(steps), where))
                    shown.advance(line)
                if long_steps is not None:
                    plan = Plan(task, seed, f"IFP {long_steps}", long_steps, chosen.id)
                    runs += file.get(plan, [long_steps]) or file.put([_long(plan, chosen, data, keep, device)])
                    shown.advance(line)
    return Comparison(tuple(runs), by, tuple(best))


class _File:
    """The runs that a file holds, and those that are added to it."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self.held = {(run.plan, run.steps): run for run in read_runs(Run, path)}

    def get(self, plan: Plan, steps: Sequence[int]) -> list[Run]:
        """What was measured of this plan after these steps, or nothing unless all of it was."""
        found = [self.held.get((plan, n)) for n in sorted(steps)]
        return [run for run in found if run is not None] if None not in found else []

    def put(self, runs: list[Run]) -> list[Run]:
        for run in runs:
            append_run(run, self.path)
        return runs


def _voted(z: "Zoo", ids: Sequence[str], data: Data, seed: int) -> SubNetwork:
    with warnings.catch_warnings():
        # Votes of far tasks are here to be compared, however little their voters agree.
        warnings.simplefilter("ignore", WeakVoteWarning)
        return vote_from([z.get(i) for i in ids], data.task, seed=seed)


def _long(plan: Plan, base: Base, data: Data, keep: float, device: str | None) -> Run:
    started = time.perf_counter()
    sub = prune(base, data, keep=keep, seed=plan.seed, device=device, steps=plan.until, progress=False)
    return Run(*plan, plan.until, sub.accuracy or 0.0, time.perf_counter() - started)


def _curve(plan: Plan, sub: SubNetwork, data: Data, steps: list[int], where: Any) -> list[Run]:
    model, spec = place(build(sub), where), InputSpec.of(dict(sub.base.input))
    runs = []
    started = time.perf_counter()

    def measure(done: int) -> None:
        if done in steps:
            seconds = time.perf_counter() - started
            top1 = accuracy(model, data.test_images, data.test_labels, spec, device=where)
            runs.append(Run(*plan, done, top1, seconds))

    run_steps(
        model, make_optimizer(model, sub.base), data, spec, steps=plan.until, batch_size=128, seed=plan.seed,
        device=where, after=measure,
    )  # fmt: skip
    return runs
