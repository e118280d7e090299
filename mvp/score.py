"""What needs forward passes: responses of sub-networks, LEEP against candidates, task embeddings from a base."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mvp.bases import full_model
from mvp.data import Data
from mvp.finetune import check_data
from mvp.producers.stamp_file import load_generator, task_vector
from mvp.progress import track
from mvp.subnetwork import build
from mvp.train import InputSpec, outputs, pick_device, place
from zoo.errors import OptionError
from zoo.leep import leep, leep_by_task
from zoo.records import Base, Score, SubNetwork, Task
from zoo.sql import matching_ids

if TYPE_CHECKING:
    from zoo import Zoo

SCORED = ("leep", "prototype", "stamp")  # measures that read what `score` stores


def score(
    z: "Zoo",
    data: Data,
    *,
    by: str = "leep",
    base: str | None = None,
    where: str | None = None,
    images: int | None = None,
    seed: int = 0,
    generator: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> int:
    """Runs what `z.nearest(data.task, by=...)` reads, and stores it as rows of `scores`.

    Args:
        z: A writable zoo.
        data: Images of the new task; its training split is used.
        by: "leep": every candidate sub-network runs once over the training images. "prototype": the base does, and the
            task's embedding is stored. "stamp": the set encoder of a mask generator does (see `generator`).
        base: Id of the base when the zoo has several.
        where: SQL predicate over the view `subnetworks` that limits the candidates.
        images: Use at most this many training images, equally many a class, drawn by `seed`; all when None.
        seed: Seed of that draw.
        generator: For "stamp": a file of `mvp meta-train` for this base. Use the same one for all tasks of a zoo: the
            encodings of two cannot be compared. Sub-networks pruned with it hold theirs already.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        Number of rows written; equal ones are not written again. LEEP from all images replaces LEEP from a sample.

    Raises:
        OptionError: A measure that needs no forward pass, or is unknown; "stamp" without a generator, or another one
            with it. Also: the zoo has several bases and none is named.
        BaseMismatchError: The generator belongs to another base.
    """
    if by not in SCORED:
        raise OptionError(f"nothing to compute for {by!r}", expected=" or ".join(SCORED))
    if (by == "stamp") != (generator is not None):
        raise OptionError(f"by={by!r}: generator", got=generator, expected="a file for 'stamp', none for the others")
    chosen = z.base(base)
    check_data(data, chosen)
    if images is not None:
        data = data.sample(images, seed=seed)
    if by == "prototype":
        vector = embed(chosen, data, device=device)
        return z.add_scores([Score(chosen.id, data.task.id, "prototype", vector=vector)])
    if generator is not None:
        encoder, options = load_generator(generator, chosen)
        encoding = task_vector(encoder, chosen, data, images=options.images, device=device).numpy()
        return z.add_scores([Score(chosen.id, data.task.id, "stamp", vector=encoding)])
    spec, run_on = InputSpec.of(dict(chosen.input)), pick_device(device)
    # Moved once for all candidates.
    inputs = data.train_images.to(run_on)
    labels = data.train_labels.numpy()
    rows = []
    for i in track(_candidates(z, chosen, where), "LEEP", progress=progress):
        theta = responses(z.get(i), inputs, spec, device=run_on)
        rows.append(Score(i, data.task.id, "leep", leep(theta, labels)))
    return z.add_scores(rows)


def score_pairs(
    z: "Zoo",
    source: Data,
    *,
    base: str | None = None,
    ids: Collection[str] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> int:
    """LEEP of every stored sub-network on every stored task of one data set: each sub-network runs once, not once a
    pair.

    Args:
        z: A writable zoo.
        source: The data set that the tasks' classes come from, whole.
        base: Id of the base when the zoo has several.
        ids: Only these sub-networks, so that several processes can share the work.
        device: See `score`.
        progress: See `score`.

    Returns:
        Number of rows written; sub-networks that have all their rows are not run again.
    """
    chosen = z.base(base)
    number = {label: i for i, label in enumerate(source.labels)}
    tasks: list[Task] = [t for t in z.tasks() if t.dataset == source.dataset and set(t.labels) <= number.keys()]
    classes = [tuple(number[label] for label in t.labels) for t in tasks]
    used = sorted({c for task in classes for c in task})
    if not used:
        return 0
    rows_used = torch.isin(source.train_labels, torch.tensor(used))
    run_on = pick_device(device)
    images, labels = source.train_images[rows_used].to(run_on), source.train_labels[rows_used].numpy()
    spec, written = InputSpec.of(dict(chosen.input)), 0
    have = _scored(z)
    candidates = [i for i in _candidates(z, chosen, None) if ids is None or i in ids]
    for i in track(candidates, "LEEP of all pairs", progress=progress):
        missing = [t for t, task in enumerate(tasks) if (i, task.id) not in have]
        if not missing:
            continue
        theta = responses(z.get(i), images, spec, device=run_on)
        values = leep_by_task(theta, labels, [classes[t] for t in missing])
        # One commit a sub-network: a killed run goes on where it stopped.
        written += z.add_scores([Score(i, tasks[t].id, "leep", float(v)) for t, v in zip(missing, values, strict=True)])
    return written


def _candidates(z: "Zoo", base: Base, where: str | None) -> list[str]:
    allowed = None if where is None else matching_ids(z.snapshot(), where)
    rows = z.sql("select id from subnetworks where base_id = ? order by created_at, id", [base.id]).fetchall()
    return [i for (i,) in rows if allowed is None or i in allowed]


def _scored(z: "Zoo") -> set[tuple[str, str]]:
    return set(z.sql("select source, target from scores where measure = 'leep'").fetchall())


def responses(sub: SubNetwork, images: Tensor, spec: InputSpec, *, device: torch.device) -> np.ndarray:
    """Softmax outputs of a sub-network, eval mode, float32, shape (n, classes of its task)."""
    model = place(build(sub), device)
    return outputs(model, images, spec, device=device).softmax(1).numpy()


def embed(base: Base, data: Data, *, device: str | None = None) -> np.ndarray:
    """A task's embedding: the mean of its classes' prototypes in the base's feature space, float32, unit length.

    No paper defines a task embedding; this is the mean over classes of `prototypes`, so it does not depend on the
    order of the labels nor on how many images each class has.
    """
    return combine(prototypes(base, data, device=device))


def combine(class_prototypes: np.ndarray) -> np.ndarray:
    """Task embedding from the prototypes of its classes, shape (classes, d) -> (d,), unit length."""
    mean = class_prototypes.mean(0, dtype=np.float64)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def prototypes(base: Base, data: Data, *, device: str | None = None, progress: bool = False) -> np.ndarray:
    """Class prototypes (Snell et al. 2017): the mean, unit-length input of the base's head over a class's training
    images.

    Returns:
        float32, shape (classes, d), each row of unit length.
    """
    run_on = pick_device(device)
    model = place(full_model(base), run_on)
    spec = InputSpec.of(dict(base.input))
    total = torch.zeros(len(data.labels), 0, dtype=torch.float64)
    caught: list[Tensor] = []
    head = model.get_submodule(base.plan["head"][0].rpartition(".")[0])
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    try:
        for start in track(range(0, len(data.train_images), 500), "prototypes", progress=progress):
            caught.clear()
            outputs(model, data.train_images[start : start + 500], spec, device=run_on)
            features = nn.functional.normalize(torch.cat(caught).flatten(1).double().cpu(), dim=1)
            if not total.numel():
                total = torch.zeros(len(data.labels), features.shape[1], dtype=torch.float64)
            total.index_add_(0, data.train_labels[start : start + 500], features)
    finally:
        hook.remove()
    return nn.functional.normalize(total, dim=1).numpy().astype(np.float32)
