import numpy as np
import pytest
import torch

from mvp.importance import chunks, weight_sums
from mvp.plan import prunable
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import PlanError

# `activation` and `taylor` are compared with naive forms in producers/test_ifp.py, through the channels that IFP keeps.


def weights(base):
    return {k: torch.from_numpy(np.array(v)) for k, v in base.weights.items()}


def test_weight_sums_of_filters_are_norms_of_their_kernels():
    base = tiny.base()
    tensors = weights(base)
    got = weight_sums(base.plan, prunable(base.plan), {k: v.abs() for k, v in tensors.items()})
    for axis, layer in (("a0", "conv1"), ("a0", "conv3"), ("a1", "conv2")):
        expected = [float(f.abs().double().sum()) for f in tensors[f"{layer}.weight"]]
        assert got[axis][layer].tolist() == pytest.approx(expected)
    assert set(got["a0"]) == {"conv1", "conv3"}


def test_a_head_owns_its_queries_keys_and_values():
    base = tiny.base("vit")
    tensors = weights(base)
    axes = [a for a in prunable(base.plan) if base.plan["axes"][a]["kind"] == "head"]
    got = weight_sums(base.plan, axes, {k: v**2 for k, v in tensors.items()})
    for i, axis in enumerate(axes):
        qkv = tensors[f"blocks.{i}.attn.qkv.weight"].view(3, 3, 4, 12)  # q k v, heads, head width, inputs
        assert got[axis][f"blocks.{i}.attn.qkv"].tolist() == pytest.approx((qkv.double() ** 2).sum((0, 2, 3)).tolist())


def test_a_layer_without_values():
    base = tiny.base()
    with pytest.raises(PlanError, match=r"conv2\.weight"):
        weight_sums(base.plan, ["a1"], {})


def test_chunks_cover_the_training_split_in_order():
    data = tiny.task()
    parts = list(chunks(data, 7))
    assert torch.equal(torch.cat([x for x, _ in parts]), data.train_images)
    assert torch.equal(torch.cat([y for _, y in parts]), data.train_labels)
