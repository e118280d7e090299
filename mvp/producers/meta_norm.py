"""Meta-pruning: Algorithms 5 and 6 of the meta-pruning proposal, with norms as what decides."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvp.data import Data
from mvp.finetune import check_data, seeded_noise
from mvp.options import at_least, check_options, one_of, whole
from mvp.producers import check_keep, check_sources, recorded
from mvp.producers.narrowing import (
    RULES,
    Narrowing,
    NormOptions,
    one_pass,
    pass_due,
    passes_needed,
    targets,
)
from mvp.progress import track
from mvp.subnetwork import export
from mvp.train import accuracy, batches, derive_seed, pick_device, step
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork


@dataclass(frozen=True)
class MetaNormPruning(NormOptions):
    """Learns from tasks of other data sets which units to keep, then trains the sub-network on the task.

    Source: the meta-pruning proposal (Salcedo and Sharma), section 8, Algorithms 5 and 6. For each source in turn:
    sample tasks from it; from theta, each task i takes steps theta_i <- theta_i - beta G_i; then theta is pruned.
    "weights" (Algorithm 5): theta is also fine-tuned, and the next source starts from it. "architecture"
    (Algorithm 6): theta starts from random weights at each source and again at the end; only the set of units goes on.

    Where the paper is silent: the pruning is `NormPruning`'s, with the norms of all theta_i added up (that "weights
    important for a broad set of related tasks" stay is its aim); after the steps theta is the mean of the theta_i
    (with one step, the step along the mean gradient), which is then pruned; a source has one head, and a task of some
    of its classes uses those outputs alone; sources come round again until `keep` is reached, and with fewer passes
    than sources the norms of several are added up before a pass; every pass restarts the optimiser. Algorithm 5 starts
    from the base instead of random weights, as the proposal's experiments do. The task itself takes no part in the
    choice, it shows how well the choice generalises.

    Every axis keeps the same share, so what Algorithm 6 hands over is which units stay, in random weights: with the
    widths given, there is little in it to learn, and its accuracy is that of a slim network trained from scratch.

    Attributes:
        learn: "weights" or "architecture" (whose record has init="reinit" and does not vote).
        n_tasks: Tasks sampled from a source at each turn.
        ways: Classes of a sampled task; all of the source's when None, and tasks then differ in their images only.
        beta: Learning rate of a task's steps, plain SGD.
        inner_steps: Steps a task; 1 in the paper.
        tune_epochs: Epochs on the task at the end.
        norm: See `NormOptions`, as for those not named here; `every_epochs` is the fine-tuning on each source
            ("weights"), and lr does not concern a task's steps.
    """

    learn: Literal["weights", "architecture"] = "weights"
    n_tasks: int = 4
    ways: int | None = None
    beta: float = 0.01
    inner_steps: int = 5
    tune_epochs: int = 7

    name: ClassVar[str] = "meta_norm"
    paper: ClassVar[str] = "Meta-pruning (Salcedo and Sharma), Alg. 5-6"
    kind: ClassVar[str] = "filter+node+head"
    needs: ClassVar[str] = "task data, source tasks"
    widths: ClassVar[str] = "equal"
    claim: ClassVar[str] = "no figures reported"

    def __post_init__(self) -> None:
        check_options(
            self, **RULES, learn=one_of("weights", "architecture"), n_tasks=whole(1), ways=whole(2, optional=True),
            beta=at_least(0), inner_steps=whole(1), tune_epochs=whole(0),
        )  # fmt: skip

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True,
        sources: Sequence[Data] = (),
    ) -> SubNetwork:  # fmt: skip
        """See `Producer.prune`.

        Raises:
            OptionError: No sources, a source with fewer classes than `ways`, or the base has no unit to remove.
            DataError: Too few images.
        """
        check_keep(keep)
        check_sources(self, sources)
        for one in [*sources, data]:
            check_data(one, base)
        if small := [d for d in sources if self.ways is not None and len(d.labels) < self.ways]:
            raise OptionError(f"{self.name}: ways", got=self.ways, expected=f"at most {len(small[0].labels)} classes")
        started, where = time.perf_counter(), pick_device(device)
        sizes, target = targets(base, keep, self.name)
        passes = passes_needed(sizes, target, self.prune_share)
        turns = max(passes, len(sources))
        run = Narrowing(base, self, len(sources[0].labels), where=where, seed=derive_seed(seed, "source", 0))
        with seeded_noise(seed, where):
            for turn in track(range(turns), self.name, progress=progress):
                j = turn % len(sources)
                source, head = sources[j], derive_seed(seed, "source", j)
                if self.learn == "architecture":
                    run.reinitialise(len(source.labels), seed=derive_seed(seed, "random", turn))
                else:
                    run.turn_to(j, len(source.labels), seed=head)
                self._adapt(run, source, derive_seed(seed, "tasks", turn))
                if pass_due(turn, turns, passes):
                    sizes = one_pass(sizes, target, self.prune_share)
                    run.narrow(sizes)
                if self.learn == "weights":
                    run.train(source, self.every_epochs, seed=derive_seed(seed, "batches", turn), measure=False)
            if self.learn == "architecture":
                run.reinitialise(len(data.labels), seed=seed)
            else:
                run.turn_to("the task", len(data.labels), seed=seed)
            run.train(data, self.tune_epochs, seed=derive_seed(seed, "tune"), measure=False)
        seconds = time.perf_counter() - started
        top1 = accuracy(run.model, data.test_images, data.test_labels, run.spec, device=where)
        return export(
            run.model, base, data.task, run.sets, producer=self.name, keep=keep, seed=seed,
            init="pretrained" if self.learn == "weights" else "reinit", options=recorded(self, sources),
            metrics={"accuracy": top1, "seconds": seconds, "steps": run.steps},
        )  # fmt: skip

    def _adapt(self, run: Narrowing, source: Data, seed: int) -> None:
        """theta_i <- theta_i - beta G_i for each sampled task: adds up their norms, and theta becomes their mean."""
        means: dict[str, Tensor] = {}
        for i in range(self.n_tasks):
            rng = np.random.default_rng(derive_seed(seed, i))
            n = len(source.labels)
            classes = sorted(rng.choice(n, self.ways or n, replace=False).tolist())
            task = source.subset(classes)
            stream = batches(
                task.train_images, task.train_labels, run.spec, batch_size=self.batch_size, seed=derive_seed(seed, i),
                device=run.where,
            )  # fmt: skip
            theta = copy.deepcopy(run.model).train()
            inner = torch.optim.SGD(theta.parameters(), lr=self.beta)
            outputs = nn.Sequential(theta, Columns(classes)).train()
            for _ in range(self.inner_steps):
                x, y = next(stream)
                step(outputs, inner, x, y)
                run.steps += 1
            for name, tensor in theta.state_dict().items():
                if tensor.is_floating_point():
                    part = tensor.detach() / self.n_tasks
                    means[name] = means[name] + part if name in means else part.clone()
            with run.gates(theta) as gates, torch.no_grad():
                if gates is not None:
                    theta(x)
                run.measure(theta, gates)
        if self.learn == "weights":
            run.model.load_state_dict(means, strict=False)


class Columns(nn.Module):
    """Some of a head's outputs: those of a task's classes."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.classes = list(classes)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (n, all classes) to (n, classes)."""
        return logits[:, self.classes]
