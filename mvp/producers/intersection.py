"""Pruning for several data sets at once: Algorithm 4 of the meta-pruning proposal, and two stricter readings of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.options import between, check_options, one_of, whole
from mvp.producers import check_keep, check_sources, recorded
from mvp.producers.narrowing import (
    RULES,
    Counts,
    Narrowing,
    NormOptions,
    one_pass,
    part_of,
    pass_due,
    passes_needed,
    targets,
)
from mvp.progress import track
from mvp.subnetwork import export
from mvp.train import accuracy, derive_seed, pick_device
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class IntersectionPruning(NormOptions):
    """Keeps units that several data sets want: the source tasks' and the task's own.

    Source: the meta-pruning proposal (Salcedo and Sharma), section 2.2.3 and Algorithm 4, with norms and passes as in
    `NormPruning`. Its Algorithm 4 takes the input from the next data set every N_i epochs ("sequential"), so that what
    is left survived on all of them. The other two rules are what its title says, and its wish to keep what *most* data
    sets keep: each data set alone is pruned from the base down to `keep`, then the sets are combined.

    Every axis keeps max(1, round(keep n)) units. "intersection": those that all data sets keep, topped up by the
    number of data sets that keep a unit, then by its norms. "k_of_n": those that at least k data sets keep, the largest
    norms first where they are too many, topped up in the same way. The norms that decide are those of the first N_i
    epochs, when all units were there, divided by their maximum on the axis and summed over the data sets. The units
    chosen start from the base's weights.

    Where the paper is silent: the order is sources, then the task, over and over; with fewer passes than data sets the
    norms of several are added up before a pass, so that each has its say. Every data set has a head of its own, which
    waits, and is narrowed, while others train. The last epochs, after the last pass, belong to the task, whose head is
    the record's.

    Attributes:
        rule: "sequential", "intersection" or "k_of_n".
        k: Data sets, the task's own among them, that must keep a unit; more than half of them when None.
        sample_share: Share of each data set's training images, drawn anew at each turn, classes balanced (0.1 in the
            paper). The last epochs take all of the task's images.
        tune_epochs: Epochs on the task after the last pass.
        norm: See `NormOptions`, as for those not named here.
    """

    rule: Literal["sequential", "intersection", "k_of_n"] = "sequential"
    k: int | None = None
    sample_share: float = 1.0
    tune_epochs: int = 7

    name: ClassVar[str] = "intersection"
    paper: ClassVar[str] = "Meta-pruning (Salcedo and Sharma), Alg. 4"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data, source tasks"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "no figures reported"

    def __post_init__(self) -> None:
        check_options(
            self, **RULES, rule=one_of("sequential", "intersection", "k_of_n"), k=whole(1, optional=True),
            sample_share=between(0, 1), tune_epochs=whole(0),
        )  # fmt: skip
        if self.sample_share == 0:
            raise OptionError("intersection: sample_share", got=0, expected="more than 0")
        if self.k is not None and self.rule != "k_of_n":
            raise OptionError(f"intersection: rule {self.rule!r} has no k", hint="k belongs to rule='k_of_n'.")

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True,
        sources: Sequence[Data] = (),
    ) -> SubNetwork:  # fmt: skip
        """See `Producer.prune`.

        Raises:
            OptionError: No sources, k larger than the number of data sets, or the base has no unit to remove.
            DataError: Too few images in a data set.
        """
        check_keep(keep)
        check_sources(self, sources)
        everyone = [*sources, data]
        for one in everyone:
            check_data(one, base)
        least = self._least(len(everyone))
        started, where = time.perf_counter(), pick_device(device)
        sizes, target = targets(base, keep, self.name)
        agreed: dict[str, float] = {}
        with seeded_noise(seed, where):
            if self.rule == "sequential":
                run = self._sequential(base, everyone, sizes, target, where, seed, progress)
            else:
                run, agreed = self._combined(base, everyone, sizes, target, least, where, seed, progress)
            run.turn_to(len(everyone) - 1, len(data.labels), seed=seed)
            run.train(data, self.tune_epochs, seed=derive_seed(seed, "tune"), measure=False)
        seconds = time.perf_counter() - started
        top1 = accuracy(run.model, data.test_images, data.test_labels, run.spec, device=where)
        return export(
            run.model, base, data.task, run.sets, producer=self.name, keep=keep, seed=seed,
            options=recorded(self, sources),
            metrics={"accuracy": top1, "seconds": seconds, "steps": run.steps, **agreed},
        )  # fmt: skip

    def _least(self, n: int) -> int:
        """Data sets that must keep a unit."""
        if self.rule != "k_of_n":
            return n
        k = n // 2 + 1 if self.k is None else self.k
        if k > n:
            raise OptionError("intersection: k", got=k, expected=f"at most {n}: the sources and the task itself")
        return k

    def _sequential(
        self, base: Base, everyone: Sequence[Data], sizes: Counts, target: Counts, where: torch.device, seed: int,
        progress: bool,
    ) -> Narrowing:  # fmt: skip
        """Algorithm 4: the input changes to the next data set every N_i epochs."""
        passes = passes_needed(sizes, target, self.prune_share)
        turns = max(passes, len(everyone)) if passes else 0
        run = Narrowing(base, self, len(everyone[0].labels), where=where, seed=_head_seed(seed, 0, len(everyone)))
        for turn in track(range(turns), self.name, progress=progress):
            j = turn % len(everyone)
            run.turn_to(j, len(everyone[j].labels), seed=_head_seed(seed, j, len(everyone)))
            self._turn(run, everyone[j], seed, turn)
            if pass_due(turn, turns, passes):
                sizes = one_pass(sizes, target, self.prune_share)
                run.narrow(sizes)
        return run

    def _turn(self, run: Narrowing, data: Data, seed: int, *turn: object) -> None:
        """N_i epochs on a fresh sample of one data set."""
        part = part_of(data, self.sample_share, derive_seed(seed, "sample", *turn))
        run.train(part, self.every_epochs, seed=derive_seed(seed, "batches", *turn))

    def _combined(
        self, base: Base, everyone: Sequence[Data], sizes: Counts, target: Counts, least: int, where: torch.device,
        seed: int, progress: bool,
    ) -> tuple[Narrowing, dict[str, float]]:  # fmt: skip
        """Each data set alone, then what they agree on."""
        votes = {axis: np.zeros(n, dtype=np.int64) for axis, n in sizes.items()}
        norms = {axis: np.zeros(n) for axis, n in sizes.items()}
        passes, steps = passes_needed(sizes, target, self.prune_share), 0
        work = [(j, i) for j in range(len(everyone)) for i in range(passes)]
        for j, i in track(work, self.name, progress=progress):
            if i == 0:
                head = _head_seed(seed, j, len(everyone))
                alone, left = Narrowing(base, self, len(everyone[j].labels), where=where, seed=head), sizes
            self._turn(alone, everyone[j], seed, j, i)
            if i == 0:
                norms = {axis: norms[axis] + v / max(v.max(), np.finfo(float).tiny) for axis, v in alone.norms.items()}
            left = one_pass(left, target, self.prune_share)
            alone.narrow(left)
            if i == passes - 1:
                steps += alone.steps
                for axis, kept in alone.sets.items():
                    votes[axis][kept] += 1
        run = Narrowing(base, self, len(everyone[-1].labels), where=where, seed=seed)
        run.steps = steps
        if not passes:
            return run, {"kept_by_all": 1.0}
        chosen = {axis: combine(votes[axis], norms[axis], least, n) for axis, n in target.items()}
        run.keep(chosen)
        shared = sum(int((votes[axis][kept] == len(everyone)).sum()) for axis, kept in chosen.items())
        return run, {"kept_by_all": shared / sum(target.values())}


def _head_seed(seed: int, j: int, n: int) -> int:
    """The task, last in line, starts with the head that the seed itself gives, as with other producers."""
    return seed if j == n - 1 else derive_seed(seed, "head of source", j)


def combine(votes: np.ndarray, norms: np.ndarray, least: int, n: int) -> np.ndarray:
    """The n units kept: with at least `least` votes by norm, then the others by votes and, where equal, by norm.

    Args:
        votes: int, shape (units,): data sets that keep each unit.
        norms: float, shape (units,).
        least: Votes that make a unit one of the first.
        n: Units to keep.

    Returns:
        Sorted positions, shape (n,); among equals the earlier.
    """
    elected = votes >= least
    # np.lexsort sorts by its last key first.
    order = np.lexsort((np.arange(len(votes)), -norms, np.where(elected, 0, -votes), ~elected))
    return np.sort(order[:n])
