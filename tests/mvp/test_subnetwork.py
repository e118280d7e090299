import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from mvp.bases import full_model, skeleton
from mvp.masks import apply_masks, layer_sets
from mvp.plan import keep_counts
from mvp.subnetwork import build, cost, export, new_head, task_model
from mvp.surgery import masked
from zoo.errors import PlanError, RecordError
from zoo.records import Task

TASK = Task(labels=("dog", "cat", "horse"), dataset="tiny")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BASES = ["tiny_cnn", "tiny_vit"]


@pytest.fixture(params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


def random_channels(base, keep=0.5, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {a: info["n"] for a, info in base.plan["axes"].items()}
    return {a: np.sort(rng.choice(sizes[a], k, replace=False)) for a, k in keep_counts(base.plan, keep).items()}


def run(model):
    with torch.no_grad():
        return model(X)


def test_what_was_exported_is_built_again(base, tmp_path):
    channels = random_channels(base)
    model = task_model(base, 3, channels=channels, seed=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):  # moves weights and running statistics away from the base's
        torch.nn.functional.cross_entropy(model(X), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    model.eval()
    sub = export(
        model, base, TASK, channels, producer="mine", keep=0.5, seed=3, options={"lr": 0.05}, metrics={"accuracy": 0.4}
    )
    assert not any(name.endswith("num_batches_tracked") for name in sub.weights)
    assert (sub.producer, sub.keep, sub.seed, sub.options, sub.accuracy) == ("mine", 0.5, 3, {"lr": 0.05}, 0.4)
    again = build(sub)
    assert not again.training and torch.equal(run(again), run(model))
    z = zoo.open(tmp_path / "z.zoo")
    stored = z.get(z.add(sub))
    assert stored == sub and torch.equal(run(build(stored)), run(model))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(run(build(sub)), run(again))  # exported tensors are copies


def test_an_uncut_task_model_is_the_base_with_another_head(base):
    model, full = task_model(base, 3, seed=1).eval(), full_model(base)
    head = set(base.plan["head"])
    own = full.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items() if name not in head)
    assert run(model).shape == (4, 3) and run(full).shape == (4, 6)


def test_a_cut_task_model_is_the_masked_base(base):
    channels = random_channels(base)
    slim = task_model(base, 6, channels=channels).double().eval()
    reference = masked(full_model(base).double(), base.plan, channels)
    # Give both the same head: the base's.
    state = slim.state_dict()
    for name in base.plan["head"]:
        tensor = torch.from_numpy(np.array(base.weights[name])).double()
        if state[name].shape != tensor.shape:
            tensor = tensor[:, channels["a2"]]
        state[name].copy_(tensor)
    with torch.no_grad():
        torch.testing.assert_close(slim(X.double()), reference(X.double()), rtol=1e-9, atol=1e-9)


def test_independent_models_are_built_full_size(tiny_cnn):
    rng = np.random.default_rng(0)
    sets = {key: np.sort(rng.choice(8, 4, replace=False)) for key in layer_sets(tiny_cnn.plan)}
    model = task_model(tiny_cnn, 3).eval()
    apply_masks(model, tiny_cnn.plan, sets)
    sub = export(model, tiny_cnn, TASK, sets, producer="mine", keep=0.5, mode="independent")
    assert torch.equal(run(build(sub)), run(model))
    assert sub.weights["conv1.weight"].shape == (10, 8, 3, 3)
    assert (sub.params, sub.macs) == cost(tiny_cnn, {}, 3)  # masks make nothing smaller


@pytest.mark.parametrize("n_classes", [2, 6, 11])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
def test_cost_is_that_of_the_built_model(base, keep, n_classes):
    channels = random_channels(base, keep) if keep < 1 else {}
    model = task_model(base, n_classes, channels=channels).eval()
    # Attention in one kernel hides its products from the counter.
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X[:1])
    assert cost(base, channels, n_classes) == (
        sum(p.numel() for p in model.parameters()),
        counter.get_total_flops() // 2,
    )


def test_new_heads_are_paired_across_channel_sets(base):
    """Drawn at full width and cut: kept inputs have equal weights, up to the scale 1 / sqrt(inputs)."""
    weight, bias = base.plan["head"]
    whole = new_head(base, 3, {}, seed=5)
    n = whole[weight].shape[1]
    assert whole[weight].shape == (3, n) and whole[bias].shape == (3,)
    sets = (
        [{"a2": k} for k in ([0, 3, 4], [3, 4, 7, 9, 11])] if "stem.weight" in base.weights else [random_channels(base)]
    )
    for channels in sets:
        cut = new_head(base, 3, channels, seed=5)
        kept = channels["a2"] if "a2" in channels else np.arange(n)  # a ViT's embedding stays whole
        torch.testing.assert_close(cut[weight] * len(kept) ** 0.5, whole[weight][:, kept] * n**0.5)
        torch.testing.assert_close(cut[bias] * len(kept) ** 0.5, whole[bias] * n**0.5)
    assert not torch.equal(whole[weight], new_head(base, 3, {}, seed=6)[weight])


def test_new_heads_are_uniform_as_nn_linear_starts(tiny_cnn):
    head = new_head(tiny_cnn, 2000, {"a2": np.arange(4)}, seed=0)
    for tensor in head.values():
        assert tensor.abs().max() <= 0.5 and tensor.std() == pytest.approx(0.5 / 3**0.5, rel=0.05)
        assert abs(float(tensor.mean())) < 0.02


def test_a_new_head_leaves_torchs_generator_alone(tiny_cnn):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    new_head(tiny_cnn, 3, {}, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_building_does_not_touch_the_skeleton_or_the_record(tiny_cnn, tiny_sub):
    sub, bare = tiny_sub(tiny_cnn), skeleton("tiny_cnn", 6)
    before = {k: v.clone() for k, v in bare.state_dict().items()}
    weights = {k: v.copy() for k, v in sub.weights.items()}
    model = build(sub).train()
    model(X)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
    assert all(torch.equal(v, before[k]) for k, v in bare.state_dict().items())
    assert all(np.array_equal(v, weights[k]) for k, v in sub.weights.items())


def test_tensors_that_are_absent_or_misshapen_raise(tiny_cnn, tiny_sub, rebadge):
    sub = tiny_sub(tiny_cnn)
    with pytest.raises(RecordError, match="lacks tensors") as caught:
        build(rebadge(sub, weights={k: v for k, v in sub.weights.items() if not k.startswith("bn3")}))
    assert len(caught.value.problems) == 4
    with pytest.raises(PlanError, match=r"conv1\.weight: shape"):
        build(rebadge(sub, weights={**sub.weights, "conv1.weight": np.zeros((10, 8, 3, 3), np.float32)}))


def test_what_is_recorded_but_not_built_is_refused(tiny_cnn, tiny_sub, rebadge):
    sub = tiny_sub(tiny_cnn, TASK.labels)
    for fields in ({"removed_blocks": ("layer1",)}, {"kept_tokens": {"layer1": 3}}):
        with pytest.raises(PlanError, match="removed blocks or kept tokens"):
            build(rebadge(sub, **fields))
