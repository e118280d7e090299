"""Meta-vote pruning: neighbours vote for the channels to keep, their weights are averaged (MVP, Algorithm 1)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvp.average import Average, average_weights, overlay_rows
from mvp.data import Data
from mvp.plan import keep_counts
from mvp.producers import check_keep
from mvp.subnetwork import cost, new_head
from mvp.train import derive_seed
from zoo.errors import BaseMismatchError, EmptyZooError, OptionError
from zoo.records import Base, SubNetwork, Task

if TYPE_CHECKING:
    from zoo import Zoo

Head = Literal["random", "pretrained", "neighbours"]


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

    Returns:
        A sub-network with producer "vote", the voters as parents and generation 1 + the largest of theirs; its
        diagnostics are metrics: "vote/entropy", "vote/zero_share", "vote/fallback_share", "vote/agreement", and each
        with "/axis".

    Raises:
        EmptyZooError: Fewer candidates than k.
        MissingScoresError: by="leep" before `mvp.score`.
        OptionError: keep, tau or k out of range; or the zoo has several bases and none is named.
    """
    task = target.task if isinstance(target, Data) else target
    chosen = z.base(base)
    # Only structured, coupled sub-networks that started from the pre-trained weights can vote.
    allowed = "kind = 'structured' and mode = 'coupled' and init = 'pretrained'"
    found = z.nearest(
        task, k=k, by=by, base=chosen.id, producer=producer, where=allowed, exclude=exclude, group=group,
        sample=None if group is None else seed,
    )  # fmt: skip
    voters = [z.get(i) for i in found.id]
    return vote_from(
        voters, task, keep=keep, tau=tau, seed=seed, average=average, head=head,
        options={"by": by, "k": k, "group": group},
    )  # fmt: skip


def vote_from(
    voters: Sequence[SubNetwork],
    task: Task,
    *,
    keep: float | None = None,
    tau: float = 0.1,
    seed: int = 0,
    average: Average = "present_mean",
    head: Head = "random",
    options: Mapping[str, Any] | None = None,
) -> SubNetwork:
    """`vote` from sub-networks chosen by hand; see there.

    Raises:
        EmptyZooError: No voters.
        BaseMismatchError: The voters are of several bases, or not structured, coupled and pre-trained.
        OptionError: keep or tau out of range, a voter given twice, or the voters' keep ratios differ and none is given.
    """
    base = _common_base(voters)
    keep = _common_keep(voters) if keep is None else keep
    check_keep(keep)
    if not 0 <= tau < math.inf:
        raise OptionError("tau out of range", got=tau, expected="a finite number, 0 or more")
    counts = keep_counts(base.plan, keep)
    votes = {axis: count_votes([v.channels.get(axis) for v in voters], _n(base, axis)) for axis in counts}
    channels = {
        axis: sample(votes[axis], n, tau=tau, rng=np.random.default_rng(derive_seed(seed, "vote", task.id, axis)))
        for axis, n in counts.items()
    }
    weights, fallback = average_weights(voters, channels, how=average)
    weights |= start_head(base, voters, task, channels, how=head, seed=seed)
    params, macs = cost(base, channels, len(task.labels))
    return SubNetwork(
        task=task, base=base, channels=channels, weights=weights, producer="vote", keep=keep, seed=seed,
        options={**(options or {}), "tau": tau, "average": average, "head": head},
        parents=tuple(v.id for v in voters), generation=1 + max(v.generation for v in voters),
        metrics=diagnostics(votes, channels, voters) | fallback, params=params, macs=macs,
    )  # fmt: skip


def count_votes(kept: Sequence[np.ndarray | None], n: int) -> np.ndarray:
    """How many voters keep each channel: v_k of Eq. 1.

    Args:
        kept: Kept indices of each voter; None keeps all.
        n: Channels of the axis.

    Returns:
        int64, shape (n,), values 0..len(kept).
    """
    whole = sum(k is None for k in kept)
    listed = [k for k in kept if k is not None]
    return np.bincount(np.concatenate(listed), minlength=n) + whole if listed else np.full(n, whole)


def sample(votes: np.ndarray, n_keep: int, *, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Draws `n_keep` channels without replacement with p(k) = softmax(v / tau) (MVP, Eq. 1).

    Gumbel top-k: adding standard Gumbel noise to v / tau and taking the largest is exactly successive sampling without
    replacement from the renormalised softmax (Vieira 2014; Kool et al. 2019). tau = 0 takes the most votes and breaks
    ties by the same noise.

    Args:
        votes: Votes, shape (n,).
        n_keep: Channels to draw, 1..n.
        tau: Temperature, >= 0.
        rng: Source of the noise.

    Returns:
        Sorted int32 indices, shape (n_keep,).
    """
    noise = rng.gumbel(size=len(votes))
    # In double precision the noise spans less than 41. At a small tau one vote outweighs that, so the noise only breaks
    # ties, and in the sum it would be rounded away.
    order = np.lexsort((-noise, -votes)) if tau < 0.02 else np.argsort(-(votes / tau + noise))
    return np.sort(order[:n_keep]).astype(np.int32)


def diagnostics(
    votes: Mapping[str, np.ndarray], channels: Mapping[str, np.ndarray], voters: Sequence[SubNetwork]
) -> dict[str, float]:
    """How sure a vote is, per axis and as a mean over axes.

    entropy: of the votes as a distribution over channels, divided by log n: 1 when all have equally many votes.
    zero_share: share of the drawn channels that nobody voted for. agreement: mean IoU over pairs of voters (1 for one).
    """
    found: dict[str, float] = {}
    for axis, v in votes.items():
        p = v[v > 0] / v.sum()
        found[f"vote/entropy/{axis}"] = float(-(p * np.log(p)).sum() / np.log(len(v)))
        found[f"vote/zero_share/{axis}"] = float((v[channels[axis]] == 0).mean())
        found[f"vote/agreement/{axis}"] = _agreement([s.channels.get(axis) for s in voters], len(v))
    for name in ("entropy", "zero_share", "agreement"):
        found[f"vote/{name}"] = float(np.mean([found[f"vote/{name}/{axis}"] for axis in votes]))
    return found


def _agreement(kept: Sequence[np.ndarray | None], n: int) -> float:
    masks = np.zeros((len(kept), n), dtype=bool)
    for mask, indices in zip(masks, kept, strict=True):
        mask[slice(None) if indices is None else indices] = True
    pairs = [(masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for i in range(len(kept)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else 1.0


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


def _n(base: Base, axis: str) -> int:
    return base.plan["axes"][axis]["n"]


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
