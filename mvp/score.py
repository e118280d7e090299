"""What needs forward passes: scores of sub-networks on a task (LEEP and its kin), task embeddings from a base."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mvp.bases import full_model
from mvp.data import Data
from mvp.features import logits_and_features
from mvp.finetune import check_data
from mvp.producers.stamp_file import load_generator, task_vector
from mvp.progress import track
from mvp.subnetwork import build
from mvp.task2vec import task2vec
from mvp.train import InputSpec, outputs, pick_device, place
from zoo.errors import OptionError
from zoo.hscore import hscore
from zoo.leep import leep, leep_by_task
from zoo.logme import logme
from zoo.nce import nce
from zoo.records import Base, Score, SubNetwork, Task
from zoo.rows import Rows
from zoo.sql import matching_ids

if TYPE_CHECKING:
    from zoo import Zoo

# Measures of a sub-network on a task, from its softmax outputs, its head's inputs and the labels. LogME and H-score
# take the features, which both are defined on; softmax outputs keep only what tells the classes of another task apart.
OF_SUBNETWORKS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "leep": lambda theta, features, labels: leep(theta, labels),
    "nce": lambda theta, features, labels: nce(theta.argmax(1), labels),
    "logme": lambda theta, features, labels: logme(features, labels),
    "hscore": lambda theta, features, labels: hscore(features, labels),
}
OF_TASKS = ("prototype", "task2vec")  # embeddings of a task by a base
SCORED = (*OF_SUBNETWORKS, *OF_TASKS, "stamp")  # measures that read what `score` stores


def score(
    z: "Zoo",
    data: Data,
    *,
    by: str | Sequence[str] = "leep",
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
        by: "leep", "nce", "logme", "hscore": every candidate sub-network runs once over the training images, also for
            several of them (`by=["leep", "logme"]`). LEEP is of its softmax outputs, NCE of its most probable classes,
            LogME and H-score of what its head takes in. "prototype" and "task2vec": the base runs, and the task's
            embedding is stored; Task2Vec takes a backward pass an image too. "stamp": the set encoder of a mask
            generator does (see `generator`).
        base: Id of the base when the zoo has several.
        where: SQL predicate over the view `subnetworks` that limits the candidates.
        images: Use at most this many training images, equally many a class, drawn by `seed`; all when None.
        seed: Seed of that draw, and of Task2Vec's labels.
        generator: For "stamp": a file of `mvp meta-train` for this base. Use the same one for all tasks of a zoo: the
            encodings of two cannot be compared. Sub-networks pruned with it hold theirs already.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        Number of rows written; equal ones are not written again. A score of all images replaces one of a sample.

    Raises:
        OptionError: A measure that needs no forward pass, or is unknown; "stamp" without a generator, or another one
            with it. Also: the zoo has several bases and none is named.
        DataError: Too few images; for "logme" and "task2vec" also images of a single class.
        BaseMismatchError: The generator belongs to another base.
    """
    asked = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    if not asked or set(asked) - set(SCORED):
        raise OptionError(f"nothing to compute for {by!r}", expected=" or ".join(SCORED))
    if ("stamp" in asked) != (generator is not None):
        raise OptionError(f"by={by!r}: generator", got=generator, expected="a file for 'stamp', none for the others")
    chosen = z.base(base)
    check_data(data, chosen)
    if images is not None:
        data = data.sample(images, seed=seed)
    rows = [
        Score(chosen.id, data.task.id, name, vector=embedding(name, chosen, data, seed=seed, device=device))
        for name in asked if name in OF_TASKS
    ]  # fmt: skip
    if generator is not None:
        encoder, options = load_generator(generator, chosen)
        encoding = task_vector(encoder, chosen, data, images=options.images, device=device).numpy()
        rows.append(Score(chosen.id, data.task.id, "stamp", vector=encoding))
    measures = {name: OF_SUBNETWORKS[name] for name in asked if name in OF_SUBNETWORKS}
    if measures:
        run_on, spec = pick_device(device), InputSpec.of(dict(chosen.input))
        inputs = data.train_images.to(run_on)  # moved once for all candidates
        labels = data.train_labels.numpy()
        for i in track(candidates_of(z, chosen, where), ", ".join(measures), progress=progress):
            model = place(build(z.get(i)), run_on)
            logits, features = logits_and_features(model, chosen.plan, inputs, spec, device=run_on)
            theta = logits.softmax(1).numpy()
            rows += [
                Score(i, data.task.id, name, measure(theta, features.numpy(), labels))
                for name, measure in measures.items()
            ]
    return z.add_scores(rows)


def embedding(name: str, base: Base, data: Data, *, seed: int = 0, device: str | None = None) -> np.ndarray:
    """A task's embedding of a name in `OF_TASKS`, float32 (d,); see `embed` and `mvp.task2vec`."""
    return task2vec(base, data, seed=seed, device=device) if name == "task2vec" else embed(base, data, device=device)


def embed_stored(
    z: "Zoo",
    source: Data,
    *,
    by: str = "task2vec",
    base: str | None = None,
    images: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> int:
    """Embeds every stored task of one data set that has no embedding of this name: what the tasks of a zoo that was
    filled without it lack.

    Args:
        z: A writable zoo.
        source: The data set that the tasks' classes come from, whole.
        by: "prototype" or "task2vec".
        base: Id of the base when the zoo has several.
        images: See `score`; use the same number for all tasks.
        seed: See `score`.
        device: See `score`.
        progress: See `score`.

    Returns:
        Number of rows written, one a task.

    Raises:
        OptionError: Another measure; or the zoo has several bases and none is named.
    """
    if by not in OF_TASKS:
        raise OptionError(f"no embedding of tasks called {by!r}", expected=" or ".join(OF_TASKS))
    chosen, rows = z.base(base), Rows.of(z.snapshot())
    stored = zip(rows.base_ids, rows.task_ids, rows.embeddings(by))
    have = {task for of, task, vector in stored if of == chosen.id and vector is not None}
    have |= {task for of, task in rows.embedding_scores(by) if of == chosen.id}
    missing = [
        t for t in z.tasks() if t.dataset == source.dataset and set(t.labels) <= set(source.labels) and t.id not in have
    ]
    written = 0
    for task in track(missing, by, progress=progress):
        data = source.subset(task.labels)
        data = data if images is None else data.sample(images, seed=seed)
        vector = embedding(by, chosen, data, seed=seed, device=device)
        # One commit a task: a killed run goes on where it stopped.
        written += z.add_scores([Score(chosen.id, task.id, by, vector=vector)])
    return written


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
    candidates = [i for i in candidates_of(z, chosen, None) if ids is None or i in ids]
    for i in track(candidates, "LEEP of all pairs", progress=progress):
        missing = [t for t, task in enumerate(tasks) if (i, task.id) not in have]
        if not missing:
            continue
        theta = responses(z.get(i), images, spec, device=run_on)
        values = leep_by_task(theta, labels, [classes[t] for t in missing])
        # One commit a sub-network: a killed run goes on where it stopped.
        written += z.add_scores([Score(i, tasks[t].id, "leep", float(v)) for t, v in zip(missing, values, strict=True)])
    return written


def candidates_of(z: "Zoo", base: Base, where: str | None) -> list[str]:
    """Ids of the sub-networks of a base, oldest first, those that meet a SQL condition."""
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
    for start in track(range(0, len(data.train_images), 500), "prototypes", progress=progress):
        part = slice(start, start + 500)
        _, x = logits_and_features(model, base.plan, data.train_images[part], spec, device=run_on)
        features = nn.functional.normalize(x.double(), dim=1)
        if not total.numel():
            total = torch.zeros(len(data.labels), features.shape[1], dtype=torch.float64)
        total.index_add_(0, data.train_labels[part], features)
    return nn.functional.normalize(total, dim=1).numpy().astype(np.float32)
