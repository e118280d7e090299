"""`mvp populate`: fills a zoo with the sub-networks of many tasks of one data set, and their LEEP vectors."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvp.data import Data, draw_tasks
from mvp.producers import Producer, check_keep, check_sources, recorded, resolve
from mvp.progress import bar
from mvp.score import combine, prototypes, score_pairs
from mvp.train import derive_seed
from zoo.errors import OptionError
from zoo.records import Base

if TYPE_CHECKING:
    from zoo import Zoo

_MISSES = 1000  # draws in a row that were all there already, before more different ones are given up


def populate(
    z: "Zoo",
    base: Base,
    source: Data,
    tasks: Sequence[Sequence[str]],
    *,
    producer: "str | type | Producer" = "ifp",
    keep: float = 0.1,
    seed: int = 0,
    sources: int = 0,
    leep: bool = True,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> list[str]:
    """Prunes the base for every task, adds each sub-network as soon as it is made, ends with the LEEP of all pairs.

    Killed and started again with the same arguments it goes on: a task whose sub-network (same base, producer,
    options, keep and seed) is in the zoo is not pruned again.

    Args:
        z: A writable zoo.
        base: From `mvp.load_base`.
        source: The data set, whole.
        tasks: Class names of each task, e.g. from `draw_tasks` or `draw_related`.
        producer: See `mvp.prune`.
        keep: See `mvp.prune`.
        seed: Seed of every pruning run, and recorded in the tasks as the seed of their draw.
        sources: Source tasks drawn for each task, for producers that need them (see `draw_sources`).
        leep: End with the LEEP of all pairs; leave it out while other processes fill the same zoo.
        device: CUDA when there is one, when None.
        progress: Show a progress bar with an estimate when the output is a terminal.
        **options: The producer's options.

    Returns:
        Ids of the sub-networks in the order of `tasks`.
    """
    check_keep(keep)
    member = resolve(producer, **options)
    check_sources(member, range(sources))
    done = _finished(z, base, member, keep, seed, sources)
    class_prototypes = None
    ids = []
    with bar(progress=progress) as shown:
        line = shown.add_task(f"populate ({member.name})", total=len(tasks))
        for labels in tasks:
            data = source.subset(labels, seed=seed)
            if data.task.id not in done:
                if class_prototypes is None:
                    class_prototypes = prototypes(base, source, device=device)
                others = check_sources(member, draw_sources(source, labels, sources, seed=seed))
                sub = member.prune(base, data, keep=keep, seed=seed, device=device, progress=False, **others)
                vector = combine(class_prototypes[[source.labels.index(label) for label in labels]])
                embeddings = {**sub.embeddings, "prototype": vector}
                done[data.task.id] = z.add(dataclasses.replace(sub, embeddings=embeddings))
            ids.append(done[data.task.id])
            shown.advance(line)
    if leep:
        score_pairs(z, source, base=base.id, device=device, progress=progress)
    return ids


def _finished(z: "Zoo", base: Base, member: Producer, keep: float, seed: int, sources: int) -> dict[str, str]:
    """{task id: sub-network id} of what an earlier run of the same options left."""
    wanted = recorded(member)
    rows = z.sql(
        "select task_id, id, options from subnetworks where base_id = ? and producer = ? and keep = ? and seed = ? "
        "order by created_at desc, id desc",
        [base.id, member.name, keep, seed],
    ).fetchall()
    # Equal as a whole: one that was fine-tuned later says so in its options, and is another sub-network.
    done = {}
    for task, i, stored in rows:
        found = json.loads(stored)
        if len(found.pop("sources", [])) == sources and found == wanted:
            done[task] = i
    return done


def draw_sources(source: Data, labels: Sequence[str], n: int, *, seed: int = 0) -> list[Data]:
    """Source tasks for a task: `n` random ones of as many classes, from the data set's other classes.

    Raises:
        OptionError: The data set has too few other classes for so many different tasks.
    """
    others = [label for label in source.labels if label not in set(labels)]
    drawn = draw_tasks(others, n, n_classes=len(labels), seed=derive_seed(seed, "sources", *labels)) if n else []
    return [source.subset(task, seed=seed) for task in drawn]


def draw_related(
    labels: Sequence[str], n_tasks: int, *, dataset: str | None = None, n_classes: int = 5, seed: int = 0
) -> list[tuple[str, ...]]:
    """Tasks whose similarities spread: random ones alone hardly share anything (5 of 100 classes).

    In turn, by thirds of `n_tasks`: random tasks; families, an anchor and relatives that share n_classes - 1, ..., 1
    classes with it; WordNet neighbourhoods, a random class with classes drawn from the 2 (n_classes - 1) nearest to it
    by wup. No class set comes twice.

    Args:
        labels: Classes to draw from; those without a synset take no part in neighbourhoods.
        n_tasks: Number of tasks.
        dataset: Data set of the labels, for their synsets.
        n_classes: Classes a task.
        seed: Seed of the draw.

    Returns:
        One tuple of labels a task.

    Raises:
        OptionError: Fewer labels than families need (three times `n_classes`) or with a synset than neighbourhoods need
            (2 n_classes - 1), or not so many different tasks of a kind.
    """
    from zoo import labels as zoo_labels
    from zoo import wordnet

    if len(labels) < 3 * n_classes:
        raise OptionError(f"{len(labels)} labels are too few for related tasks", expected=f"{3 * n_classes} or more")
    rng = np.random.default_rng(seed)
    tasks = draw_tasks(labels, n_tasks - 2 * (n_tasks // 3), n_classes=n_classes, seed=seed)
    seen = {frozenset(t) for t in tasks}

    misses = 0

    def keep(task: Sequence[str]) -> None:
        nonlocal misses
        if frozenset(task) not in seen:
            seen.add(frozenset(task))
            tasks.append(tuple(task))
            misses = 0
            return
        misses += 1
        if misses == _MISSES:
            raise OptionError(
                f"cannot draw {n_tasks} different related tasks of {n_classes} from {len(labels)} labels",
                got=f"{len(tasks)} tasks", hint="Ask for fewer tasks.",
            )  # fmt: skip

    n_families = len(tasks) + n_tasks // 3
    while len(tasks) < n_families:
        anchor = list(rng.choice(labels, n_classes, replace=False))
        keep(anchor)
        rest = [label for label in labels if label not in anchor]
        for shared in range(n_classes - 1, 0, -1):
            if len(tasks) < n_families:
                common = list(rng.choice(anchor, shared, replace=False))
                keep([str(x) for x in common + list(rng.choice(rest, n_classes - shared, replace=False))])
    mapped = [r for r in zoo_labels.resolve(list(labels), dataset=dataset) if r.wnid]
    if len(tasks) < n_tasks and len(mapped) < 2 * n_classes - 1:
        raise OptionError(
            f"{len(mapped)} of {len(labels)} labels have a synset", expected=f"{2 * n_classes - 1} for neighbourhoods",
            hint="Draw the tasks at random instead, or give the data set whose table of synsets fits.",
        )  # fmt: skip
    nouns = [str(r.wnid) for r in mapped]
    wup = wordnet.wup_matrix(nouns, nouns)
    while len(tasks) < n_tasks:
        centre = int(rng.integers(len(mapped)))
        near = np.lexsort((np.arange(len(mapped)), -wup[centre]))
        near = near[near != centre][: 2 * (n_classes - 1)]
        chosen = [centre, *rng.choice(near, n_classes - 1, replace=False)]
        keep([mapped[int(c)].label for c in chosen])
    return [tuple(str(label) for label in task) for task in tasks]
