"""The IoU-by-depth study: do the sub-networks of similar tasks keep the same channels, and at which depth?

Source: MVP (Zhao et al.), sec. 3.2, Fig. 1 and 2 (IoU by layer or block in five similarity groups), Fig. 6 (group 1
minus group 5) and Fig. 7 (voted against random sub-networks). Where the paper is silent: a target's own set of classes
is no neighbour of it, intervals are percentile bootstraps over tasks (`zoo.bootstrap`), and the floor is the exact
expectation of the IoU of two random sets of the kept sizes.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from zoo.bootstrap import Estimate, drawn_pairs, drawn_targets, estimate, task_weights
from zoo.channels import Floats, iou_rows
from zoo.cohort import choose, require_channels, require_one
from zoo.errors import EmptyZooError, OptionError
from zoo.finding import find_rows
from zoo.measures import find_measure
from zoo.overlap import group_means
from zoo.pairs import pair_groups
from zoo.rows import Rows, Snapshot
from zoo.study import Against, Study
from zoo.taskwup import How
from zoo.units import PER, Unit, unit_floor, units_of


def iou_by_depth(
    snapshot: Snapshot,
    *,
    by: str = "wup",
    groups: int = 5,
    binning: str = "equal_width",
    per: str = "axis",
    base: str | None = None,
    mode: str | None = None,
    producer: str | None = None,
    keep: float | None = None,
    generation: int | None = 0,
    ids: Collection[str] | None = None,
    exclude: str | None = "same_classes",
    how: How = "best_match",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Study:
    """IoU of kept channels by depth, for groups of task pairs from most to least similar.

    Every sub-network is a target once. The others are split into groups by their similarity to its task (`groups_of`:
    equal width between the target's smallest and largest score, 1 = most similar); the IoU of the target with each is
    averaged in a group, then over targets whose group is not empty. Axes that every sub-network keeps whole are left
    out.

    Args:
        snapshot: One state of a zoo.
        by: Measure of similarity: "wup" | "leep" | "prototype" | "mask_iou" (which is the IoU itself: a check, no
            finding).
        groups: Number of groups, at least 2.
        binning: "equal_width" (the paper's) | "quantile".
        per: "axis" (each set once) | "layer" (a set at each layer that writes it, as in the paper's figures; a set that
            several layers share is repeated) | "block" (heads and nodes of a transformer block together and apart).
        base: Only this base: id, prefix or name.
        mode: Only "coupled" or "independent" sub-networks.
        producer: Only this producer's.
        keep: Only this keep ratio.
        generation: Only this generation (0 = pruned, not voted); None = any.
        ids: Exactly these sub-networks; then producer, keep and generation may differ.
        exclude: Pairs that are left out besides a sub-network and itself: "same_classes" | "same_task" | "overlap" |
            None.
        how: How class similarities become a task's, for "wup".
        bootstrap: Resamples of tasks for the 95% intervals (see `zoo.bootstrap`); 0 = no intervals, which is much
            quicker beyond 1,000 sub-networks.
        seed: Of the resampling.

    Returns:
        A Study.

    Raises:
        MixtureError: Several bases, modes, producers or keep ratios; lists what is there and how to choose.
        EmptyZooError: Fewer than two sub-networks left, or no pair.
        OptionError: An argument outside its range.
        MissingScoresError: The zoo lacks what the measure reads.
    """
    _check(groups=groups, per=per, bootstrap=bootstrap)
    find_measure(by)
    rows = Rows.of(snapshot)
    chosen = choose(rows, base, mode, producer, keep, generation, ids)
    which = chosen.which
    pairs = pair_groups(rows, which, by, groups, binning, exclude, how)
    if not pairs.group.any():
        raise EmptyZooError(
            f"no pair of the {len(which)} sub-networks can be compared",
            hint="Add sub-networks of other tasks, or relax exclude=",
        )
    mode_used = str(chosen.about["mode"])
    units = units_of(chosen.plan, chosen.packed, mode_used, per)
    axes = units if per == "axis" else units_of(chosen.plan, chosen.packed, mode_used, "axis")
    unit_words = [chosen.packed.joined(unit.keys) for unit in units]
    axis_words = unit_words if per == "axis" else [chosen.packed.joined(unit.keys) for unit in axes]
    thirds = _thirds(axes)
    parts = [[axis_words[i] for i in members] for members in thirds]
    most = pairs.most()

    means, sizes = group_means(unit_words, pairs.group, groups)
    axis_means = means if per == "axis" else group_means(axis_words, pairs.group, groups)[0]
    shared_means, shared_sizes = group_means(axis_words, pairs.by_shared, most)
    third_means, gaps = _over(thirds, axis_means), _over(thirds, axis_means[:, :, :1] - axis_means[:, :, -1:])
    weights = task_weights([rows.task_ids[i] for i in which], bootstrap, seed)
    drawn, drawn_gap = drawn_pairs([*([words] for words in unit_words), *parts], pairs.group, groups, weights)
    drawn_shared, _ = drawn_pairs(parts, pairs.by_shared, most, weights)
    u = len(units)
    trend, drawn_trend = gaps[3:] - gaps[1:2], drawn_gap[u + 3 :] - drawn_gap[u + 1 : u + 2]
    about = {
        **chosen.about, "by": by, "binning": binning, "exclude": exclude, "bootstrap": bootstrap, "seed": seed,
        "version": snapshot.token,
        "unmapped": int((rows.mapped_labels[which] == 0).sum()) if by == "wup" else 0,
    }  # fmt: skip
    return Study(
        per=per,
        units=units,
        axes=axes,
        iou=estimate(means, drawn[:u]),
        unit_gap=estimate(means[:, :, :1] - means[:, :, -1:], drawn_gap[:u]),
        thirds=estimate(third_means, drawn[u:]),
        third_gaps=estimate(np.concatenate([gaps, trend]), np.concatenate([drawn_gap[u:], drawn_trend])),
        shared=estimate(_over(thirds, shared_means), drawn_shared),
        shared_sizes=shared_sizes,
        sizes=sizes,
        floor=np.array([unit_floor(chosen.packed, unit) for unit in units]),
        axis_floor=np.array([unit_floor(chosen.packed, unit) for unit in axes]),
        about=about,
    )


def iou_against(
    snapshot: Snapshot,
    ids: Collection[str] | Mapping[str, Collection[str]],
    reference: str | Collection[str] = "same_task",
    *,
    producer: str | None = None,
    per: str = "axis",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Against:
    """IoU of some sub-networks with reference ones, by depth: voted against random ones, in the style of MVP's Fig. 7.

    Args:
        snapshot: One state of a zoo.
        ids: Ids, or {name of the line: ids} to compare several sets: {"voted": [...], "random": [...]}.
        reference: "same_task": the pruned (generation 0) sub-networks with the same classes, none of `ids` among them;
            or ids, each compared with all of `ids`.
        producer: Only references of this producer.
        per: "axis" | "layer" | "block".
        bootstrap: Resamples of tasks for the 95% intervals.
        seed: Of the resampling.

    Returns:
        An Against; sub-networks without a reference are counted in it.

    Raises:
        MixtureError: Several bases or modes, or references of several producers.
        EmptyZooError: No sub-network has a reference.
        NotFoundError: An id that is not there.
    """
    _check(per=per, bootstrap=bootstrap)
    rows = Rows.of(snapshot)
    lines = ids if isinstance(ids, Mapping) else {"given": ids}
    asked = {name: find_rows(rows, given) for name, given in lines.items()}
    every = np.unique(np.concatenate([np.empty(0, np.int64), *asked.values()]))
    fixed = None if isinstance(reference, str) else find_rows(rows, reference)
    if fixed is None and reference != "same_task":
        raise OptionError("iou_against: what to compare with", got=repr(reference), expected="'same_task' | ids")
    members = every if fixed is None else np.unique(np.concatenate([every, fixed]))
    require_one(rows, members, {"base": None, "mode": None})
    if not len(every):
        raise EmptyZooError("iou_against: no ids given")
    stored, packed = rows.packed(str(rows.base_ids[every[0]]), str(rows.mode[every[0]]))
    require_channels(rows, members)
    usable = np.isin(np.arange(len(rows)), stored) & ~np.isin(np.arange(len(rows)), every)
    if producer is not None:
        usable &= rows.producer == producer
    references = {
        int(i): np.setdiff1d(fixed, [i]) if fixed is not None
        else np.flatnonzero(usable & (rows.generation == 0) & rows.same_classes(rows.target(int(i))))
        for i in every
    }  # fmt: skip
    found = np.unique(np.concatenate(list(references.values())))
    if not len(found):
        raise EmptyZooError(
            f"none of the {len(every)} sub-networks has one to be compared with",
            hint="Prune the same tasks and add the results, or give the ids to compare with as reference=",
        )
    if fixed is None:
        require_one(rows, found, {"producer": producer})
    plan = rows.plan(str(rows.base_ids[every[0]]))
    used = packed.take(np.searchsorted(stored, np.union1d(every, found)))
    units = units_of(plan, used, str(rows.mode[every[0]]), per)
    words = [packed.joined(unit.keys) for unit in units]
    estimates: dict[str, Estimate] = {}
    without = 0
    for name, chosen in asked.items():
        values = np.full((len(units), len(chosen), 1), np.nan)
        for j, i in enumerate(chosen):
            others = np.searchsorted(stored, references[int(i)])
            own = np.searchsorted(stored, [i])
            without += not len(others)
            for u, bits in enumerate(words):
                if len(others):
                    values[u, j, 0] = iou_rows(bits[own], bits[others]).mean()
        weights = task_weights([rows.task_ids[i] for i in chosen], bootstrap, seed)
        estimates[name] = estimate(values, drawn_targets(values, weights))
    floor = np.array([unit_floor(used, unit) for unit in units])
    return Against(per=per, units=units, lines=estimates, floor=floor, without=without,
                   sizes={name: len(chosen) for name, chosen in asked.items()})  # fmt: skip


def _thirds(axes: Sequence[Unit]) -> list[list[int]]:
    """Places of all axes, and of those in each third of the network's depth."""
    return [list(range(len(axes))), *([i for i, unit in enumerate(axes) if unit.third == t] for t in range(3))]


def _over(members: Sequence[Sequence[int]], values: Floats) -> Floats:
    """Means of (U, T, G) values over each choice of axes, each axis once; NaN for a third without axes."""
    absent = np.full(values.shape[1:], np.nan)
    return np.stack([values[list(chosen)].mean(axis=0) if chosen else absent for chosen in members])


def _check(per: str = "axis", groups: int = 2, bootstrap: int = 1) -> None:
    problems = []
    if per not in PER:
        problems.append(f"per: got {per!r}, expected {' | '.join(PER)}")
    if groups < 2:
        problems.append(f"groups: got {groups}, expected at least 2")
    if bootstrap < 0:
        problems.append(f"bootstrap: got {bootstrap}, expected a number of resamples, or 0 for none")
    if problems:
        raise OptionError("iou_by_depth: options outside their range", problems=problems)
