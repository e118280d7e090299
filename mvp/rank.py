"""Which measure of similarity foretells what a vote gives? `mvp measures`.

For each held-out task each measure ranks the stored sub-networks. Along this ranking `groups` disjoint blocks of k
voters are taken at equal distances, from the k nearest to the k farthest; each block votes, and its vote is fine-tuned
a few steps. A measure is good when its score of a block (the mean of the voters' scores) and the accuracy that the
block's vote reaches come in the same order: Spearman's and Kendall's (tau-b) rank correlation over a task's blocks.

No paper defines this comparison. Blocks are taken along each measure's own ranking, and not at random for all measures
together, because the best and the worst of sixty are what a zoo is asked for, and random blocks hardly differ. A set of
voters that two measures choose is fine-tuned once.
"""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvp.data import Data
from mvp.finetune import finetune
from mvp.progress import bar
from mvp.ranking import Ranking, Run
from mvp.runfile import append_run, read_runs
from mvp.trust import WeakVoteWarning
from mvp.vote import PRUNED, vote_from
from zoo.errors import EmptyZooError, MissingScoresError, NotFoundError, OptionError, UnknownLabelsError

if TYPE_CHECKING:
    from zoo import Neighbours, Zoo


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
    out: str | Path | None = None,
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
                ranking = z.nearest(data.task, k=None, by=measure, base=chosen.id, where=PRUNED)
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
