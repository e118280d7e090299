"""Masks on a classifier's weights that several data sets agree on, or that are learned from one to the next."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from mvp.data import Data
from mvp.finetune import check_data
from mvp.options import check_options, one_of
from mvp.producers import check_keep, check_sources, recorded
from mvp.producers.classifier_mask import RULES, Classifier, MaskOptions, Masks
from mvp.producers.intersection import combine
from mvp.subnetwork import new_head
from mvp.surgery import build
from mvp.train import derive_seed, pick_device, place
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class ClassifierMaskSources(MaskOptions):
    """Masks of a classifier's weights from several tasks: their intersection, or pruned from one to the next.

    Source: the meta-pruning proposal (Salcedo and Sharma), sections 2.2.1 and 2.2.2, which are headings without text.
    Chosen here: masks, layers and counts are `ClassifierMask`'s. "intersection": the network is trained and masked for
    the task and for each source, each time from the base and the same head; what all of them keep stays, topped up by
    the number of tasks that keep a weight, then by its share of the layer's largest score, summed over tasks. The
    task's own network takes that mask. "meta" follows the proposal's Algorithm 5: source after source the network is
    trained, some of the weights left are cut, and it is fine-tuned; the next source starts from there. After t of T
    sources a layer has round(n keep^(t/T)) weights. The task itself takes no part in the choice: it trains `steps` and
    `tune_steps` under the last masks.

    A head's row is a class, so masks of heads can be laid on each other only where all tasks have equally many
    classes; which class of a source lies on which of the task is by their order, and means nothing.

    Attributes:
        over: "intersection" or "meta".
        method: See `MaskOptions`, as for all the others.
    """

    over: Literal["intersection", "meta"] = "intersection"

    name: ClassVar[str] = "classifier_mask_sources"
    paper: ClassVar[str] = "Meta-pruning (Salcedo and Sharma), sec. 2.2.1-2.2.2"
    kind: ClassVar[str] = "element"
    needs: ClassVar[str] = "task data, source tasks"
    widths: ClassVar[str] = "full"
    claim: ClassVar[str] = "no figures reported"

    def __post_init__(self) -> None:
        check_options(self, **RULES, over=one_of("intersection", "meta"))

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True,
        sources: Sequence[Data] = (),
    ) -> SubNetwork:  # fmt: skip
        """See `Producer.prune`.

        Raises:
            OptionError: No sources, tasks of different numbers of classes, or the base has no head.
            DataError: Too few images.
        """
        check_keep(keep)
        check_sources(self, sources)
        for one in [*sources, data]:
            check_data(one, base)
        if wrong := [len(d.labels) for d in sources if len(d.labels) != len(data.labels)]:
            raise OptionError(
                f"{self.name}: the tasks differ in their number of classes", got=f"{wrong[0]} in a source",
                expected=f"{len(data.labels)}, as the task has", hint="Masks of heads are laid on each other.",
            )  # fmt: skip
        started, where = time.perf_counter(), pick_device(device)
        run = Classifier(base, self, len(data.labels), where=where, seed=seed, progress=progress)
        if self.over == "intersection":
            masks, agreed = self._intersection(run, sources, data, keep, seed)
            run.tune(data, masks, seed=seed)
        else:
            masks, agreed = self._meta(run, sources, keep, seed), {}
            new_task(run, len(data.labels), seed)
            run.tune(data, masks, seed=seed, steps=self.steps + self.tune_steps)
        options = recorded(self, sources)
        return run.record(self, data, masks, keep=keep, seed=seed, started=started, options=options, more=agreed)

    def _intersection(
        self, run: Classifier, sources: Sequence[Data], data: Data, keep: float, seed: int
    ) -> tuple[Masks, dict[str, float]]:
        votes = {name: np.zeros(run.weight(name).numel(), dtype=np.int64) for name in run.layers}
        strength = {name: np.zeros(run.weight(name).numel()) for name in run.layers}
        steps, counts = 0, run.counts(keep)
        for j, one in enumerate([*sources, data]):
            # The task comes last: its network is the one that goes on.
            own = run if one is data else Classifier(
                run.base, self, len(data.labels), where=run.where, seed=seed, progress=run.progress
            )  # fmt: skip
            scores = own.learn(one, counts, seed=seed if one is data else derive_seed(seed, "source", j))
            for name, mask in own.cut(scores, counts).items():
                votes[name] += mask.cpu().numpy().reshape(-1)
                values = scores[name].double().cpu().numpy().reshape(-1)
                strength[name] += values / max(values.max(), np.finfo(float).tiny)
            steps += 0 if one is data else own.steps
        run.steps += steps
        everyone = len(sources) + 1
        masks, shared = {}, 0
        for name in run.layers:
            chosen = combine(votes[name], strength[name], everyone, counts[name])
            flat = torch.zeros(votes[name].size, dtype=torch.bool)
            flat[torch.from_numpy(chosen)] = True
            masks[name] = flat.view(run.weight(name).shape).to(run.where)
            shared += int((votes[name] == everyone).sum())
        return masks, {"kept_by_all": shared / sum(int(mask.sum()) for mask in masks.values())}

    def _meta(self, run: Classifier, sources: Sequence[Data], keep: float, seed: int) -> Masks:
        masks: Masks = {name: torch.ones_like(run.weight(name), dtype=torch.bool) for name in run.layers}
        for t, source in enumerate(sources, start=1):
            own = derive_seed(seed, "source", t)
            new_task(run, len(source.labels), own)
            counts = run.counts(keep ** (t / len(sources)))
            masks = run.cut(run.learn(source, counts, seed=own, alive=masks), counts)
            run.tune(source, masks, seed=own)
        return masks


def new_task(run: Classifier, n_classes: int, seed: int) -> None:
    """Replaces the head by a new one; the rest of the classifier and the network go on."""
    run.model = place(build(run.model, run.base.plan, {}, new_head(run.base, n_classes, {}, seed=seed)), run.where)
