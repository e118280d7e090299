import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mvp.average import average_weights
from mvp.bases import load_base, register
from mvp.nets import REGISTERED
from mvp.plan import keep_counts, kept_indices, prunable
from mvp.subnetwork import build, new_head
from zoo.errors import OptionError, RecordError
from zoo.records import SubNetwork, Task


def scattered(voter, name):
    """(full-size tensor with zeros, presence mask) of a voter, by a loop over the expressions' kept indices."""
    base = voter.base
    shape = base.weights[name].shape
    kept = [kept_indices(base.plan, e, voter.channels).tolist() for e in base.plan["params"].get(name, shape)]
    full, present = np.zeros(shape), np.zeros(shape, dtype=bool)
    for slim_at in np.ndindex(*[len(k) for k in kept]):
        at = tuple(k[i] for k, i in zip(kept, slim_at))
        full[at], present[at] = voter.weights[name][slim_at], True
    return full, present


def by_entry(voters, channels, name, how):
    """Algorithm 1's average, one entry (k, c, ...) of the full tensor after the other, and the share nobody holds."""
    base = voters[0].base
    pretrained, each = base.weights[name], [scattered(v, name) for v in voters]
    wanted = [kept_indices(base.plan, e, channels).tolist() for e in base.plan["params"].get(name, pretrained.shape)]
    out, missing = np.zeros([len(w) for w in wanted]), 0
    for slim_at in np.ndindex(*out.shape):
        at = tuple(w[i] for w, i in zip(wanted, slim_at))
        if how == "present_mean":
            values = [full[at] for full, present in each if present[at]]
        else:  # over the voters that keep filter k = at[0] at all
            fill = 0.0 if how == "zero_fill" else pretrained[at]
            values = [full[at] if present[at] else fill for full, present in each if present[at[:1]].any()]
        missing += not values
        out[slim_at] = sum(values) / len(values) if values else pretrained[at]
    return out, missing / max(out.size, 1)


def random_channels(base, keep, seed):
    rng = np.random.default_rng(seed)
    sizes = {a: info["n"] for a, info in base.plan["axes"].items()}
    return {a: np.sort(rng.choice(sizes[a], k, replace=False)) for a, k in keep_counts(base.plan, keep).items()}


@pytest.mark.parametrize("how", ["present_mean", "zero_fill", "pretrained_fill"])
@pytest.mark.parametrize("keep", [0.25, 0.6])
def test_cnn_by_entry(tiny_cnn, tiny_sub, how, keep):
    voters = [tiny_sub(tiny_cnn, keep=keep, seed=i) for i in range(3)]
    channels = random_channels(tiny_cnn, 0.5, seed=8)
    got, metrics = average_weights(voters, channels, how=how)
    assert set(got) == set(tiny_cnn.weights) - {"fc.weight", "fc.bias"}
    missing, entries = 0.0, 0
    for name, tensor in got.items():
        expected, share = by_entry(voters, channels, name, how)
        assert tensor.dtype == np.float32 and tensor.shape == expected.shape, name
        np.testing.assert_allclose(tensor, expected, rtol=1e-6, atol=1e-9, err_msg=name)
        missing, entries = missing + share * tensor.size, entries + tensor.size
    assert metrics["vote/fallback_share"] == pytest.approx(missing / entries) and missing > 0


@pytest.mark.parametrize("how", ["present_mean", "zero_fill", "pretrained_fill"])
def test_vit_by_entry(tiny_vit, tiny_sub, how):
    voters = [tiny_sub(tiny_vit, keep=0.5, seed=i) for i in range(3)]
    channels = random_channels(tiny_vit, 0.75, seed=8)
    got, _ = average_weights(voters, channels, how=how)
    head = set(tiny_vit.plan["head"])
    assert set(got) == set(tiny_vit.weights) - head
    for name in (
        "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight", "blocks.1.mlp.fc1.bias",
        "blocks.1.mlp.fc2.weight", "norm.weight", "pos_embed", "cls_token",
    ):  # fmt: skip
        expected, _ = by_entry(voters, channels, name, how)
        np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)


def test_the_ways_differ_only_where_input_channels_do(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, keep=0.5, seed=i) for i in range(3)]
    channels = random_channels(tiny_cnn, 0.5, seed=8)
    results = {
        how: average_weights(voters, channels, how=how)[0] for how in ("present_mean", "zero_fill", "pretrained_fill")
    }
    for one, other in itertools.combinations(results.values(), 2):
        differ = {name for name in one if not np.array_equal(one[name], other[name])}
        # The stem reads RGB, which everyone has, and one-dimensional tensors have no inputs.
        assert differ == {"conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "shortcut.0.weight"}


def test_batch_norm_statistics_are_means_over_those_that_keep_the_filter(tiny_cnn, tiny_sub):
    sets = ([0, 1, 2], [1, 2, 3], [2, 4, 5])
    voters = [tiny_sub(tiny_cnn, channels={"a0": kept}, seed=i, noise=1.0) for i, kept in enumerate(sets)]
    got, _ = average_weights(voters, {"a0": np.array([0, 1, 2, 7])})
    for name in ("bn0.running_mean", "bn0.running_var", "bn2.weight", "bn2.bias"):
        a, b, c = (v.weights[name].astype(np.float64) for v in voters)
        expected = [a[0], (a[1] + b[0]) / 2, (a[2] + b[1] + c[0]) / 3, tiny_cnn.weights[name][7]]
        np.testing.assert_allclose(got[name], expected, rtol=1e-6)


def test_what_nobody_holds_is_pretrained_and_counted_by_axis(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, channels={"a1": [0, 1]}, seed=i) for i in range(2)]
    got, metrics = average_weights(voters, {"a1": np.array([1, 7, 8])})
    assert np.array_equal(got["conv1.weight"][1:], tiny_cnn.weights["conv1.weight"][[7, 8]])
    assert np.array_equal(got["conv2.weight"][:, 1:], tiny_cnn.weights["conv2.weight"][:, [7, 8]])
    # conv1 writes a1: 2 of 3 filters. stem and conv2 write a0: 2 of 3 of conv2's inputs, nothing of the stem.
    assert metrics["vote/fallback_share/a1"] == pytest.approx(2 / 3)
    assert metrics["vote/fallback_share/a0"] == pytest.approx(2 * 8 * 9 / (3 * 8 * 9 + 8 * 27))
    assert metrics["vote/fallback_share/a2"] == metrics["vote/fallback_share/a3"] == 0
    norms = 2 * 4  # entries of bn1
    entries = sum(t.size for t in got.values())
    assert metrics["vote/fallback_share"] == pytest.approx((2 * 8 * 9 + 2 * 8 * 9 + norms) / entries)
    assert set(metrics) == {"vote/fallback_share"} | {f"vote/fallback_share/{a}" for a in prunable(tiny_cnn.plan)}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_identical_voters_come_back_bit_for_bit(tiny_cnn, tiny_sub, n):
    voter = tiny_sub(tiny_cnn, keep=0.4, seed=1, noise=1.0)
    for how in ("present_mean", "zero_fill", "pretrained_fill"):
        got, metrics = average_weights([voter] * n, voter.channels, how=how)
        assert all(np.array_equal(got[name], voter.weights[name]) for name in got)
        assert metrics["vote/fallback_share"] == 0


def test_the_order_of_voters_does_not_matter(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, seed=i) for i in range(4)]
    channels = random_channels(tiny_cnn, 0.5, seed=8)
    one, _ = average_weights(voters, channels)
    for other in itertools.permutations(voters):
        for name, tensor in average_weights(other, channels)[0].items():
            np.testing.assert_allclose(tensor, one[name], rtol=1e-6)


def test_voters_that_keep_an_axis_whole(tiny_cnn, tiny_sub):
    a, b = tiny_sub(tiny_cnn, channels={}, keep=1.0, seed=1), tiny_sub(tiny_cnn, channels={"a1": [3]}, seed=2)
    got, _ = average_weights([a, b], {"a1": np.array([2, 3])})
    weights = [v.weights["conv1.weight"].astype(np.float64) for v in (a, b)]
    np.testing.assert_allclose(got["conv1.weight"], [weights[0][2], (weights[0][3] + weights[1][0]) / 2], rtol=1e-6)


def test_the_average_of_cut_bases_is_the_cut_base(tiny_cnn, tiny_sub):
    """With untrained voters every way but zero_fill gives the base's own weights."""
    voters = [tiny_sub(tiny_cnn, seed=i, noise=0) for i in range(3)]
    sub = tiny_sub(tiny_cnn, seed=9, noise=0)
    for how in ("present_mean", "pretrained_fill"):
        got, _ = average_weights(voters, sub.channels, how=how)
        assert all(np.array_equal(got[name], sub.weights[name]) for name in got)
    zero, _ = average_weights(voters, sub.channels, how="zero_fill")
    assert any(not np.array_equal(zero[name], sub.weights[name]) for name in zero)


def test_groups_concatenations_and_scalars():
    """A depthwise convolution behind a concatenation, a scale without dimensions and an integer buffer."""

    class Odd(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.depthwise, self.last = nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.Conv2d(10, 5, 1)
            self.scale = nn.Parameter(torch.tensor(1.5))
            self.register_buffer("steps", torch.tensor(3))
            self.fc = nn.Linear(5, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.a(x), self.b(x).relu()], 1)
            return self.fc(self.last(self.depthwise(x).relu()).mean((2, 3)) * self.scale)

    register("odd", Odd)
    try:
        base = load_base("odd", num_classes=4, input={"size": [3, 4, 4]})
        assert len(prunable(base.plan)) == 3
        rng, voters = np.random.default_rng(0), []
        task = Task(labels=("x", "y"), synsets=(None, None))
        for seed in range(3):
            channels = random_channels(base, 0.6, seed)
            shapes = {
                n: [len(kept_indices(base.plan, e, channels)) for e in base.plan["params"].get(n, t.shape)]
                for n, t in base.weights.items()
            }
            weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} | {
                "steps": np.array(9 + seed)
            }
            weights |= {n: t.numpy() for n, t in new_head(base, 2, channels, seed=seed).items()}
            voters.append(SubNetwork(task, base, channels, weights, "ifp", 0.6))
        channels = random_channels(base, 0.6, 7)
        for how in ("present_mean", "zero_fill", "pretrained_fill"):
            got, _ = average_weights(voters, channels, how=how)
            for name in set(got) - {"steps"}:
                np.testing.assert_allclose(got[name], by_entry(voters, channels, name, how)[0], rtol=1e-5, err_msg=name)
            assert got["scale"] == pytest.approx(np.mean([v.weights["scale"] for v in voters]))
            assert got["steps"] == 3  # counters and index tables are the base's
        assert build(SubNetwork(task, base, channels, got | dict(new_head(base, 2, channels, seed=0)), "x", 0.6))
    finally:
        del REGISTERED["odd"]


def test_an_unknown_way(tiny_cnn, tiny_sub):
    with pytest.raises(OptionError, match="present_mean, zero_fill or pretrained_fill"):
        average_weights([tiny_sub(tiny_cnn)], {}, how="median")


def test_voters_whose_weights_contradict_their_channels_are_listed(tiny_cnn, tiny_sub):
    good, other = tiny_sub(tiny_cnn, seed=1), tiny_sub(tiny_cnn, seed=2)
    cut = {"conv1.weight": other.weights["conv1.weight"][:-1], "bn3.bias": np.zeros(99, np.float32)}
    bad = dataclasses.replace(other, weights={**other.weights, **cut}, weights_digest="")
    with pytest.raises(RecordError) as caught:
        average_weights([good, bad], good.channels)
    assert len(caught.value.problems) == 2 and "conv1.weight" in str(caught.value) and bad.id[:12] in str(caught.value)


def test_weights_of_other_precisions_and_layouts(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, seed=i) for i in range(3)]
    channels = random_channels(tiny_cnn, 0.5, seed=8)
    expected, _ = average_weights(voters, channels)
    double = [{n: np.asfortranarray(t.astype(np.float64)) for n, t in v.weights.items()} for v in voters]
    mixed = [dataclasses.replace(v, weights=w, weights_digest="") for v, w in zip(voters, double)]
    got, _ = average_weights([mixed[0], voters[1], mixed[2]], channels)
    for name, tensor in got.items():
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
        assert np.array_equal(tensor, expected[name]), name


def test_another_plan_of_the_same_base_is_seen(tiny_cnn, tiny_sub):
    voters = [tiny_sub(tiny_cnn, seed=i) for i in range(2)]
    average_weights(voters, voters[0].channels)
    plan = copy.deepcopy(tiny_cnn.plan)
    plan["axes"]["a1"]["unsupported"] = "a reason"
    other = dataclasses.replace(tiny_cnn, plan=plan)
    assert other == tiny_cnn
    _, metrics = average_weights([dataclasses.replace(v, base=other) for v in voters], voters[0].channels)
    assert "vote/fallback_share/a1" not in metrics and "vote/fallback_share/a2" in metrics
