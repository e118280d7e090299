"""Every producer on the same tasks, at equal kept MACs and equal fine-tuning steps: `mvp contest`."""

import json
import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvp.data import Data
from mvp.finetune import finetune
from mvp.plan import prunable
from mvp.populate import draw_sources
from mvp.producers import Producer, check_keep, needs_sources, producers, prune, recorded, resolve
from mvp.progress import bar
from mvp.runfile import append_run, read_runs
from zoo.errors import OptionError
from zoo.records import Base

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_KEY = ("entry", "options", "base", "task", "seed", "keep", "steps")


@dataclass(frozen=True)
class Entry:
    """One row of the table: a producer with its options, under a name.

    Attributes:
        name: How it is called in the table.
        producer: The producer.
        base: Its own base where it cannot use the common one (STAMP's is meta-learned).
    """

    name: str
    producer: Producer
    base: Base | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """From "lcp method=naive tune_steps=50": a producer's name and its options, values as JSON or plain words.

        Raises:
            OptionError: No such producer or option.
        """
        name, *pairs = text.split()
        options = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise OptionError(f"entry {text!r}", got=pair, expected="NAME=VALUE, e.g. steps=150")
            try:
                options[key] = json.loads(value)
            except json.JSONDecodeError:
                options[key] = value
        producer = resolve(name, **options)
        # A file is shown by its name: where it lies is nobody's business in a table.
        shown = [f"{k}={v.name if isinstance(v := getattr(producer, k), Path) else options[k]}" for k in options]
        return cls(" ".join([name, *shown]), producer)


def everyone(base: Base) -> list[Entry]:
    """Every installed producer with its defaults that removes something this base has and needs no file."""
    has = {base.plan["axes"][axis]["kind"] for axis in prunable(base.plan)} | {"element"}
    given = {"nothing", "task data", "source tasks"}
    return [
        Entry(name, member())
        for name, member in producers().items()
        if has & set(member.kind.split("+")) and set(member.needs.split(", ")) <= given
    ]


@dataclass(frozen=True)
class Run:
    """One pruning and fine-tuning.

    Attributes:
        entry: Name of the entry.
        options: The producer's options as recorded, JSON.
        base: Id of the base.
        task: Class names, joined by commas.
        seed: Seed of pruning and fine-tuning.
        keep: Keep ratio asked for.
        steps: Fine-tuning steps after pruning.
        cut: Test accuracy in 0..1 as the producer leaves the network.
        accuracy: After fine-tuning.
        macs: Of one image.
        params: Head included; single weights that a mask removed are not subtracted.
        producer_steps: Optimiser steps that the producer took; nan where it does not say.
        seconds: Wall time of the producer.
        finetune_seconds: Wall time of the fine-tuning.
    """

    entry: str
    options: str
    base: str
    task: str
    seed: int
    keep: float
    steps: int
    cut: float
    accuracy: float
    macs: int
    params: int
    producer_steps: float
    seconds: float
    finetune_seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells runs apart that need not be made twice."""
        return tuple(getattr(self, name) for name in _KEY)


@dataclass(frozen=True)
class Contest:
    """All runs, and what each producer's paper claims.

    Attributes:
        runs: Every run.
        claims: {producer: what its paper reports, in its own setting}.
        full: MACs of the whole base with the task's head.
        base: Name of the common base.
    """

    runs: tuple[Run, ...]
    claims: dict[str, str]
    full: int
    base: str

    def to_pandas(self) -> "pd.DataFrame":
        """One row a run."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.runs])

    def __str__(self) -> str:
        from zoo.table import text_table

        frame = self.to_pandas()
        names = list(dict.fromkeys(frame.entry))
        columns: dict[str, list[Any]] = {"producer": names}

        def cells(column: str, scale: float, digits: int) -> list[str]:
            grouped = frame.groupby("entry")[column]
            return [f"{m * scale:.{digits}f} ± {0 if math.isnan(s) else s * scale:.{digits}f}"
                    for m, s in ((grouped.mean()[n], grouped.std()[n]) for n in names)]  # fmt: skip

        means = frame.groupby("entry").mean(numeric_only=True)
        columns["accuracy %"] = cells("accuracy", 100, 1)
        columns["as cut %"] = cells("cut", 100, 1)
        columns["MACs M"] = [f"{means.macs[n] / 1e6:.2f}" for n in names]
        columns["params k"] = [f"{means.params[n] / 1e3:.1f}" for n in names]
        columns["seconds"] = cells("seconds", 1, 0)
        columns["its steps"] = [
            "-" if math.isnan(means.producer_steps[n]) else f"{means.producer_steps[n]:.0f}" for n in names
        ]
        n_tasks, n_seeds = frame.task.nunique(), frame.seed.nunique()
        title = (
            f"{self.base} ({self.full / 1e6:.1f}M MACs), {n_tasks} tasks x {n_seeds} seeds, keep "
            f"{frame.keep.iloc[0]:g}, {frame.steps.iloc[0]} fine-tuning steps after each; mean ± sd"
        )
        notes = ["The papers, each in its own setting:", *(f"{name}: {claim}" for name, claim in self.claims.items())]
        return text_table(columns, title=title, notes=notes)

    def plot(self, path: str | None = None) -> "Figure":
        """Accuracy after fine-tuning, an entry a line, best first: the mean with its standard error, and every run."""
        from matplotlib.figure import Figure

        frame = self.to_pandas()
        means = frame.groupby("entry").accuracy.mean().sort_values()
        figure = Figure(figsize=(9.6, 1.4 + 0.34 * len(means)), layout="constrained")
        ax = figure.add_subplot()
        for y, name in enumerate(means.index):
            values = frame[frame.entry == name].accuracy * 100
            error = 0.0 if len(values) < 2 else values.std() / math.sqrt(len(values))
            ax.plot(values, [y] * len(values), "o", color="#999999", alpha=0.6, markersize=4, zorder=1)
            ax.errorbar(values.mean(), y, xerr=error, fmt="o", color="#0072B2", capsize=3, zorder=2)
        ax.set_yticks(range(len(means)), [textwrap.fill(name, 48) for name in means.index], fontsize=8)
        ax.set_ylim(-0.7, len(means) - 0.3)
        ax.set_xlabel(f"test accuracy after {frame.steps.iloc[0]} common steps, %; grey: each task")
        ax.set_title(f"Producers on {self.base}, keep {frame.keep.iloc[0]:g}", loc="left")
        ax.grid(axis="x", alpha=0.3)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def contest(
    base: Base,
    source: Data,
    tasks: Sequence[Sequence[str]],
    entries: Sequence[Entry],
    *,
    keep: float = 0.3,
    steps: int = 100,
    seeds: Sequence[int] = (0,),
    sources: int = 3,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Contest:
    """Prunes each task with each entry, fine-tunes each result equally, and measures.

    `keep` gives every producer the same budget: the share of every axis, or the MACs of the sub-network that has these
    shares (see `Producer.widths`). Fine-tuning takes the same batches for every entry of a task and seed.

    Args:
        base: The common base.
        source: The data set, whole.
        tasks: Class names of each task.
        entries: Who takes part.
        keep: Keep ratio.
        steps: Fine-tuning steps after pruning.
        seeds: Seeds of pruning and fine-tuning.
        sources: Source tasks drawn for each task, for the producers that need them.
        out: CSV file; each run is appended as it is made, and what it already holds is not made again.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        OptionError: No tasks, entries or seeds, or keep or steps out of range.
        DataError: The CSV file is not one of these.
    """
    check_keep(keep)
    if not tasks or not entries or not seeds or steps < 0:
        raise OptionError("nothing to contest", expected="a task, an entry, a seed and steps >= 0, or more")
    made = {run.key: run for run in read_runs(Run, out)}
    runs = []
    with bar(progress=progress) as shown:
        line = shown.add_task("contest", total=len(tasks) * len(entries) * len(seeds))
        for labels in tasks:
            data = source.subset(labels)
            for seed in seeds:
                for entry in entries:
                    shown.update(line, description=entry.name)
                    others = draw_sources(source, labels, sources, seed=seed) if needs_sources(entry.producer) else []
                    own = entry.base or base
                    options = json.dumps(recorded(entry.producer, others), sort_keys=True)
                    key = (entry.name, options, own.id, ",".join(labels), seed, keep, steps)
                    if key not in made:
                        made[key] = _run(key, entry.producer, own, data, others, device)
                        append_run(made[key], out)
                    runs.append(made[key])
                    shown.advance(line)
    from mvp.subnetwork import cost

    claims = {entry.producer.name: entry.producer.claim for entry in entries}
    return Contest(tuple(runs), claims, cost(base, {}, len(tasks[0]))[1], base.name)


def _run(
    key: tuple[Any, ...], producer: Producer, base: Base, data: Data, sources: list[Data], device: str | None
) -> Run:
    *_, seed, keep, steps = key
    started = time.perf_counter()
    sub = prune(base, data, producer=producer, keep=keep, seed=seed, device=device, progress=False, sources=sources)
    seconds = time.perf_counter() - started
    tuned = finetune(sub, data, steps=steps, seed=seed, device=device, progress=False)
    return Run(
        **dict(zip(_KEY, key)), cut=sub.accuracy or 0.0, accuracy=tuned.accuracy or 0.0, macs=sub.macs,
        params=sub.params, producer_steps=sub.metrics.get("steps", math.nan), seconds=seconds,
        finetune_seconds=tuned.metrics["finetune_seconds"],
    )  # fmt: skip
