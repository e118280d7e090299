"""Meta-vote pruning: neighbours vote for the channels to keep, their weights are averaged (MVP, Algorithm 1)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvp.agreement import vote_metrics, zero_shares
from mvp.average import Average, average_weights, overlay_rows
from mvp.ballot import Rule, check_ballot, elect, weigh
from mvp.budget import Budget
from mvp.data import Data
from mvp.plan import prunable
from mvp.producers import check_keep
from mvp.seats import check_sizes, widths_of
from mvp.subnetwork import cost, new_head
from mvp.train import derive_seed
from mvp.trust import check_agreement
from zoo.errors import BaseMismatchError, EmptyZooError, OptionError
from zoo.records import Base, SubNetwork, Task

if TYPE_CHECKING:
    from zoo import Zoo

Head = Literal["random", "pretrained", "neighbours"]
Weigh = Literal["similarity", "accuracy"]
_QUORUM = ("k_of_n", "intersection")

# Sub-networks that can vote, and those of them that were pruned and not voted themselves.
MAY_VOTE = "kind = 'structured' and mode = 'coupled' and init = 'pretrained'"
PRUNED = f"generation = 0 and {MAY_VOTE}"


def vote(
    z: "Zoo",
    target: Data | Task,
    *,
    k: int = 3,
    by: str = "wup",
    keep: float | None = None,
    tau: float = 0.1,
    seed: int = 0,
    base: str | None = None,
    producer: str | None = None,
    exclude: Any = "same_classes",
    group: int | None = None,
    average: Average = "present_mean",
    head: Head = "random",
    ballot: Rule = "softmax",
    quorum: int | None = None,
    weights: Weigh | None = None,
    budget: Mapping[str, int] | None = None,
    compensation: Mapping[str, float] | None = None,
    multiple: int = 1,
    abstain: bool = False,
) -> SubNetwork:
    """The sub-network that the k nearest tasks vote for; fine-tune it with `mvp.finetune`.

    Args:
        z: The zoo.
        target: The new task, or data of it.
        k: Voters (the paper sees no gain beyond 3).
        by: Similarity measure, see `Zoo.nearest`.
        keep: Keep ratio; the voters' own when they agree and None is given.
        tau: Temperature of Eq. 1, finite; 0 keeps the channels with the most votes, ties drawn by the seed. The paper
            does not state it; 0.1 draws next to no channel without a vote as long as enough have one.
        seed: Seed of the draw and of the head; the draw depends on the task too, so that two tasks agree only where
            their voters do.
        base: Id (or prefix) of the base when the zoo has several.
        producer: Only sub-networks of this producer vote.
        exclude: See `Zoo.nearest`.
        group: The voters are k drawn by the seed from similarity group g (1 = most similar, 5 = least), as in
            Fig. 4(b), instead of the k nearest of all; see `Zoo.nearest`.
        average: See `mvp.average.average_weights`.
        head: "random", "pretrained" rows of classes that the base knows, or "neighbours": rows of shared classes.
        ballot: "softmax" (Eq. 1), "deterministic" (most votes), "k_of_n" (what at least `quorum` voters keep) or
            "intersection" (what all keep); see `mvp.ballot.elect`, ties included. The last two are as wide as they
            come out; `keep` or `budget` are then upper limits, within which channels go by votes.
        quorum: For "k_of_n"; more than half of the voters when None.
        weights: Voters count by "similarity" (of their task by the measure) or by "accuracy" instead of alike; see
            `mvp.ballot.weigh`. A quorum counts heads all the same.
        budget: {"macs": n} or {"params": n} that the sub-network with its head stays within, instead of `keep`. Widths
            follow from vote shares per cost (`mvp.budget.Budget.widths`); no axis gets less than half of what equal
            widths within the budget would leave it, as far as the ballot elects so many and `multiple` lets it (LcP's
            floor, relative to the budget). The voters may have any widths.
        compensation: With a budget, {axis or layer: beta}, added to the vote shares (0..1) of the axis's channels; the
            betas of several layers of one axis add up (LcP, Chin et al. 2018, Eq. 9).
        multiple: Widths are multiples of this, for hardware: the largest within a budget, else the nearest to what
            they would be (which may add channels that a ballot left out). An axis narrower than this keeps its width
            as it is, and so do axes of attention heads; no axis grows beyond its size or vanishes.
        abstain: Voters that agree no more than random ones (`mvp.agreement.agreement_floor`) raise an error instead of
            a warning.

    Returns:
        A sub-network with producer "vote", the voters as parents and generation 1 + the largest of theirs; its
        diagnostics are metrics: "vote/entropy", "vote/zero_share", "vote/fallback_share", "vote/agreement", each also
        with "/axis", "vote/random_floor" (of the agreement), and of the voters' similarities "vote/score_best" (the
        nearest's) and "vote/score_margin" (the nearest's minus the last's). Its `keep` is the ratio asked for; where
        none was, the share of the prunable units that stay.

    Raises:
        EmptyZooError: Fewer candidates than k.
        MissingScoresError: by="leep" before `mvp.score`.
        OptionError: keep, tau or k out of range; the zoo has several bases and none is named; the ballot's options do
            not fit (all are listed); a budget that cannot be met; a vote at chance with `abstain`.
    """
    task = target.task if isinstance(target, Data) else target
    chosen = z.base(base)
    found = z.nearest(
        task, k=k, by=by, base=chosen.id, producer=producer, where=MAY_VOTE, exclude=exclude, group=group,
        sample=None if group is None else seed,
    )  # fmt: skip
    voters = [z.get(i) for i in found.id]
    return _voted(
        voters, task, [budget], keep=keep, tau=tau, seed=seed, average=average, head=head, ballot=ballot,
        quorum=quorum, weights=weights, similarities=found.score, compensation=compensation, multiple=multiple,
        abstain=abstain, options={"by": by, "k": k, "group": group},
    )[0]  # fmt: skip


def vote_from(
    voters: Sequence[SubNetwork],
    task: Task,
    *,
    keep: float | None = None,
    tau: float = 0.1,
    seed: int = 0,
    average: Average = "present_mean",
    head: Head = "random",
    ballot: Rule = "softmax",
    quorum: int | None = None,
    weights: Weigh | None = None,
    similarities: Sequence[float] | None = None,
    budget: Mapping[str, int] | None = None,
    compensation: Mapping[str, float] | None = None,
    multiple: int = 1,
    abstain: bool = False,
    options: Mapping[str, Any] | None = None,
) -> SubNetwork:
    """`vote` from sub-networks chosen by hand; see there.

    Args:
        similarities: Similarity of each voter's task to the new one; needed for weights="similarity", and the source
            of "vote/score_best" and "vote/score_margin".
        options: What the record says about how they were chosen.

    Raises:
        EmptyZooError: No voters.
        BaseMismatchError: The voters are of several bases, or not structured, coupled and pre-trained.
        OptionError: As for `vote`; a voter given twice, or the voters' keep ratios differ and none is given.
    """
    return _voted(
        voters, task, [budget], keep=keep, tau=tau, seed=seed, average=average, head=head, ballot=ballot,
        quorum=quorum, weights=weights, similarities=similarities, compensation=compensation, multiple=multiple,
        abstain=abstain, options=options,
    )[0]  # fmt: skip


def vote_nested(
    voters: Sequence[SubNetwork], task: Task, budgets: Sequence[Mapping[str, int]], **options: Any
) -> list[SubNetwork]:
    """Sub-networks of several sizes from one vote, each with a subset of the channels of the next larger.

    The largest is what `vote_from` gives for its budget; each smaller one chooses its widths within the one before.

    Args:
        voters: See `vote_from`.
        task: See `vote_from`.
        budgets: {"macs": n} each, or {"params": n} each, in any order.
        **options: Of `vote_from`, except `keep` and `budget`.

    Returns:
        One a budget, in their order.

    Raises:
        EmptyZooError, BaseMismatchError, OptionError: As for `vote_from`; no budgets, or of both kinds.
    """
    if not budgets or len({tuple(b) for b in budgets}) > 1:
        raise OptionError("no nested sizes", got=list(budgets), expected="budgets, all of macs or all of params")
    return _voted(voters, task, budgets, **options)


def _voted(
    voters: Sequence[SubNetwork], task: Task, budgets: Sequence[Mapping[str, int] | None], *, keep: float | None = None,
    tau: float = 0.1, seed: int = 0, average: Average = "present_mean", head: Head = "random", ballot: Rule = "softmax",
    quorum: int | None = None, weights: Weigh | None = None, similarities: Sequence[float] | None = None,
    compensation: Mapping[str, float] | None = None, multiple: int = 1, abstain: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[SubNetwork]:  # fmt: skip
    base = _common_base(voters)
    limits = [None if b is None else Budget.given(base, len(task.labels), b) for b in budgets]
    check_ballot(len(voters), ballot=ballot, tau=tau, quorum=quorum)
    check_sizes(keep, limits, compensation, multiple)
    if keep is None and limits == [None] and ballot not in _QUORUM:
        keep = _common_keep(voters)
    if keep is not None:
        check_keep(keep)
    sizes = {axis: base.plan["axes"][axis]["n"] for axis in prunable(base.plan)}
    election = elect(
        [v.channels for v in voters], sizes, ballot=ballot, tau=tau, quorum=quorum,
        weights=_weights(voters, weights, similarities),
        rng=lambda axis: np.random.default_rng(derive_seed(seed, "vote", task.id, axis)),
    )  # fmt: skip
    common = vote_metrics(election.votes, voters, similarities)
    check_agreement(common["vote/agreement"], common["vote/random_floor"], abstain=abstain, stacklevel=3)
    extra = {"ballot": ballot, "quorum": quorum, "weights": weights, "compensation": compensation, "multiple": multiple}
    usual = {"ballot": "softmax", "quorum": None, "weights": None, "compensation": None, "multiple": 1}
    said = {**(options or {}), "tau": tau, "average": average, "head": head}
    said |= {name: value for name, value in extra.items() if value != usual[name]}
    subs: dict[int, SubNetwork] = {}
    widest: Mapping[str, int] = sizes
    for i in sorted(range(len(limits)), key=lambda i: -getattr(limits[i], "limit", 0)):
        widths = widths_of(base, election, keep, limits[i], len(voters), compensation, multiple, widest)
        channels, widest = election.channels(widths), widths
        tensors, fallback = average_weights(voters, channels, how=average)
        tensors |= start_head(base, voters, task, channels, how=head, seed=seed)
        params, macs = cost(base, channels, len(task.labels))
        units = sum(widths.values()) / max(sum(sizes.values()), 1)
        subs[i] = SubNetwork(
            task=task, base=base, channels=channels, weights=tensors, producer="vote",
            keep=units if keep is None else keep, seed=seed,
            options=said if limits[i] is None else {**said, "budget": dict(budgets[i] or {})},
            parents=tuple(v.id for v in voters), generation=1 + max(v.generation for v in voters),
            metrics=common | zero_shares(election.votes, channels) | fallback, params=params, macs=macs,
        )  # fmt: skip
    return [subs[i] for i in range(len(limits))]


def _weights(
    voters: Sequence[SubNetwork], weights: Weigh | None, similarities: Sequence[float] | None
) -> np.ndarray | None:
    if similarities is not None and len(similarities) != len(voters):
        raise OptionError("similarities do not fit the voters", got=len(similarities), expected=f"{len(voters)}")
    if weights is None:
        return None
    if weights not in ("similarity", "accuracy"):
        raise OptionError(f"no weights {weights!r}", expected="similarity, accuracy or None")
    if weights == "similarity":
        if similarities is None:
            raise OptionError("weights='similarity' without similarities", hint="Pass similarities=[...], one a voter.")
        return weigh(similarities)
    if unknown := [f"{v.id[:12]} of {', '.join(v.task.labels[:3])}" for v in voters if v.accuracy is None]:
        raise OptionError("weights='accuracy', but voters have none", problems=unknown)
    return weigh([float(v.accuracy or 0) for v in voters])


def start_head(
    base: Base, voters: Sequence[SubNetwork], task: Task, channels: Mapping[str, np.ndarray], *, how: Head, seed: int
) -> dict[str, np.ndarray]:
    """The new classifier: random rows, replaced where `how` finds better ones.

    Raises:
        OptionError: An unknown `how`, or "pretrained" for a base that does not say its classes.
    """
    head = {name: tensor.numpy() for name, tensor in new_head(base, len(task.labels), channels, seed=seed).items()}
    if how == "random":
        return head
    if how not in ("pretrained", "neighbours"):
        raise OptionError(f"no head {how!r}", expected="random, pretrained or neighbours")
    if how == "pretrained":
        known = list(base.info.get("labels", ()))
        if not known:
            raise OptionError("head='pretrained': the base does not say its classes", hint="Use head='random'.")
        sources: list[tuple[Any, list[str], Mapping[str, np.ndarray]]] = [(base.weights, known, {})]
    else:
        sources = [(v.weights, list(v.task.labels), v.channels) for v in voters]
    return overlay_rows(base, head, task.labels, channels, sources)


def _common_base(voters: Sequence[SubNetwork]) -> Base:
    if not voters:
        raise EmptyZooError("nobody to vote", expected="at least one sub-network")
    problems = [
        f"{v.id[:12]}: {v.kind}, {v.mode}, {v.init}" for v in voters
        if (v.kind, v.mode, v.init) != ("structured", "coupled", "pretrained")
    ]  # fmt: skip
    if problems:
        raise BaseMismatchError("only structured, coupled, pretrained sub-networks vote", problems=problems)
    if len({v.id for v in voters}) < len(voters):
        twice = sorted({v.id[:12] for v in voters if sum(v.id == w.id for w in voters) > 1})
        raise OptionError("a sub-network votes once", got=f"{', '.join(twice)} more than once")
    bases = {v.base_id: v.base for v in voters}
    if len(bases) > 1:
        raise BaseMismatchError(
            "voters of different bases", got=", ".join(f"{b.name} {i[:12]}" for i, b in bases.items()),
            expected="one base", hint="Pass base=... to choose one.",
        )  # fmt: skip
    return next(iter(bases.values()))


def _common_keep(voters: Sequence[SubNetwork]) -> float:
    keeps = sorted({v.keep for v in voters})
    if len(keeps) > 1:
        raise OptionError("the voters have different keep ratios", got=keeps, hint="Pass keep=...")
    return keeps[0]
