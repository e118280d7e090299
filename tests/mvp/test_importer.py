import copy
from itertools import combinations

import numpy as np
import pytest
import torch

import zoo
from mvp import import_subnetwork
from mvp.bases import full_model, load_base
from mvp.importer import _align, match
from mvp.plan import keep_counts
from mvp.subnetwork import build, cost, new_head
from mvp.surgery import build as cut
from zoo.errors import BaseMismatchError, PlanError, RecordError
from zoo.records import Task

TASK = Task(labels=("dog", "cat", "horse"), dataset="tiny")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BASES = ["tiny_cnn", "tiny_vit"]


@pytest.fixture(params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


def same(channels, expected):
    return set(channels) == set(expected) and all(list(channels[a]) == list(expected[a]) for a in expected)


def slim_by_hand(channels, n_classes=3, seed=0):
    """The tiny CNN cut by plain indexing, layer by layer."""
    a0, a1, a2, a3 = (list(channels[a]) for a in ("a0", "a1", "a2", "a3"))
    cuts = {"stem": (a0, None), "conv1": (a1, a0), "conv2": (a0, a1), "conv3": (a3, a0), "conv4": (a2, a3)}
    cuts |= {"shortcut.0": (a2, a0), "fc": (range(6), a2)}
    norms = {"bn0": a0, "bn1": a1, "bn2": a0, "bn3": a3, "bn4": a2, "shortcut.1": a2}

    def slice_all(state):
        out = {}
        for name, tensor in state.items():
            module, _, kind = name.rpartition(".")
            if module in norms:
                out[name] = tensor[norms[module]] if tensor.ndim else tensor
            elif kind == "bias":
                out[name] = tensor[list(cuts[module][0])]
            else:
                rows, columns = cuts[module]
                tensor = tensor[list(rows)]
                out[name] = tensor if columns is None else tensor[:, columns]
        generator = torch.Generator().manual_seed(seed)
        return out | {
            "fc.weight": torch.randn(n_classes, len(a2), generator=generator),
            "fc.bias": torch.randn(n_classes, generator=generator),
        }

    return slice_all


KEPT = {"a0": [0, 2, 3, 7], "a1": [1, 2, 5, 6, 9], "a2": [0, 1, 4, 8, 10, 11], "a3": [3, 4, 8]}


# Kept indices and a state dict ---------------------------------------------------------------------------------------


def test_kept_and_state_dict_by_axes(tiny_cnn, tmp_path):
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    sub = import_subnetwork(tiny_cnn, kept=KEPT, state_dict=state, task=TASK, metrics={"accuracy": 0.9}, seed=4)
    assert same(sub.channels, KEPT)
    assert (sub.producer, sub.seed, sub.accuracy, sub.task) == ("import", 4, 0.9, TASK)
    assert sub.keep == pytest.approx(np.mean([4 / 8, 5 / 10, 6 / 12, 3 / 9]))
    assert (sub.params, sub.macs) == cost(tiny_cnn, KEPT, 3)
    built = build(sub).state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in state.items() if tensor.ndim)
    z = zoo.open(tmp_path / "z.zoo")
    assert z.get(z.add(sub)) == sub


def test_layers_stand_for_their_axis(tiny_cnn, tiny_vit, tiny_sub):
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    by_axis = import_subnetwork(tiny_cnn, kept=KEPT, state_dict=state, task=TASK)
    layers = {
        "stem": KEPT["a0"],
        "conv2": KEPT["a0"],
        "conv1": KEPT["a1"],
        "shortcut.0": KEPT["a2"],
        "conv3": KEPT["a3"],
    }
    assert import_subnetwork(tiny_cnn, kept=layers, state_dict=state, task=TASK) == by_axis
    assert import_subnetwork(tiny_cnn, kept={"stem": KEPT["a0"], **KEPT}, state_dict=state, task=TASK) == by_axis
    # qkv writes heads and their width; only heads can be pruned.
    sub = tiny_sub(tiny_vit, channels={"a1": [0, 2], "a6": [3, 5, 70]})
    kept = {"blocks.0.attn.qkv": [0, 2], "blocks.1.mlp.fc1": [3, 5, 70]}
    got = import_subnetwork(tiny_vit, kept=kept, state_dict=sub.weights, task=sub.task)
    assert same(got.channels, sub.channels) and build(got).blocks[0].attn.num_heads == 2


def test_arrays_other_dtypes_and_counters_are_taken(tiny_cnn):
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    assert "bn0.num_batches_tracked" in state
    plain = import_subnetwork(tiny_cnn, kept=KEPT, state_dict=state, task=TASK)
    arrays = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    assert import_subnetwork(tiny_cnn, kept=KEPT, state_dict=arrays, task=TASK) == plain
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    sub = import_subnetwork(tiny_cnn, kept=KEPT, state_dict=half, task=TASK)
    assert {w.dtype for w in sub.weights.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(sub.weights["stem.weight"], plain.weights["stem.weight"], rtol=1e-2)


def test_an_unpruned_model_and_a_given_keep(tiny_cnn):
    state = {
        name: tensor[:3] if name.startswith("fc") else tensor
        for name, tensor in full_model(tiny_cnn).state_dict().items()
    }
    sub = import_subnetwork(tiny_cnn, kept={}, state_dict=state, task=TASK)
    assert sub.keep == 1 and not sub.channels
    assert import_subnetwork(tiny_cnn, kept={}, state_dict=state, task=TASK, keep=0.3).keep == 0.3
    with pytest.raises(RecordError, match="keep"):
        import_subnetwork(tiny_cnn, kept={}, state_dict=state, task=TASK, keep=0)


def test_layers_of_a_residual_group_that_disagree_are_all_named(tiny_cnn):
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    kept = {"stem": [0, 1, 2, 3], "conv2": [0, 1, 2, 4], "conv4": [1], "shortcut.0": [2], "conv9": [0], "fc": [0]}
    with pytest.raises(PlanError) as caught:
        import_subnetwork(tiny_cnn, kept=kept, state_dict=state, task=TASK)
    problems = " ".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert all(
        text in problems
        for text in ("conv2: another layer", "(a0)", "shortcut.0: another", "conv9: neither", "fc: neither")
    )


def test_indices_that_do_not_fit_are_all_named(tiny_cnn):
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    # Out of order, the tensors' rows could not be told apart from rows in order: they are not sorted in silence.
    wrong = {"a0": [0, 8], "a1": [2, 1], "a2": [], "a3": [True] * 9}
    with pytest.raises(PlanError) as caught:
        import_subnetwork(tiny_cnn, kept=wrong, state_dict=state, task=TASK)
    assert [p[:2] for p in caught.value.problems] == ["a0", "a1", "a2", "a3"]
    assert "ascending" in caught.value.problems[1]


def test_an_axis_that_cannot_be_pruned(tiny_vit):
    state = full_model(tiny_vit).state_dict()
    with pytest.raises(PlanError, match="cannot be pruned"):
        import_subnetwork(tiny_vit, kept={"a0": range(16)}, state_dict=state, task=TASK)
    with pytest.raises(PlanError, match=r"patch_embed\.proj: neither"):
        import_subnetwork(tiny_vit, kept={"patch_embed.proj": range(16)}, state_dict=state, task=TASK)


def test_tensors_that_do_not_fit_are_all_named(tiny_cnn):
    state = slim_by_hand(KEPT, n_classes=4)(full_model(tiny_cnn).state_dict())
    state["stem.weight"] = state["stem.weight"][:3]
    state["conv3.weight"] = torch.zeros(3, 4)
    del state["bn1.running_var"]
    state["aux.weight"] = torch.zeros(2)
    with pytest.raises(RecordError) as caught:
        import_subnetwork(tiny_cnn, kept=KEPT, state_dict=state, task=TASK)
    assert sorted(caught.value.problems) == [
        "aux.weight: tiny_cnn has no such tensor",
        "bn1.running_var: missing",
        "conv3.weight: shape [3, 4], expected [3, 4, 3, 3]",
        "fc.bias: shape [4], expected [3]",
        "fc.weight: shape [4, 6], expected [3, 6]",
        "stem.weight: shape [3, 3, 3, 3], expected [4, 3, 3, 3]",
    ]
    state = slim_by_hand(KEPT)(full_model(tiny_cnn).state_dict())
    state["bn0.bias"][1] = float("nan")
    with pytest.raises(RecordError, match=r"bn0\.bias.*NaN"):
        import_subnetwork(tiny_cnn, kept=KEPT, state_dict=state, task=TASK)


def test_the_arguments_make_one_choice(tiny_cnn):
    model = full_model(tiny_cnn)
    state = model.state_dict()
    wrong = [
        {}, {"kept": {}}, {"state_dict": state}, {"full": model}, {"slim": model}, {"kept": {}, "slim": model},
        {"kept": {}, "state_dict": state, "full": model}, {"full": model, "slim": model, "state_dict": state},
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(RecordError, match="full= and slim="):
            import_subnetwork(tiny_cnn, task=TASK, **given)


# A full and a slim model ---------------------------------------------------------------------------------------------


def pair(base, keep, seed, noise=0.0, tiny_sub=None):
    """(full, slim, channels): weights times 1 + noise * normal; running statistics replaced, as by other data."""
    sub = tiny_sub(base, TASK.labels, keep=keep, seed=seed, noise=0)
    slim, generator = build(sub), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in slim.state_dict().items():
            if noise and "running" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 5)
            elif tensor.is_floating_point():
                tensor.mul_(1 + noise * torch.randn(tensor.shape, generator=generator))
    return full_model(base), slim, sub.channels


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_kept_channels_are_found_by_comparing_weights(base, tiny_sub, keep, noise):
    for seed in range(4):
        full, slim, channels = pair(base, keep, seed, noise, tiny_sub)
        sub = import_subnetwork(base, full=full, slim=slim, task=TASK)
        assert same(sub.channels, channels)
        with torch.no_grad():
            assert torch.equal(build(sub)(X), slim(X))


def test_an_axis_that_stayed_whole_is_left_out(tiny_cnn, tiny_sub):
    channels = {"a1": [0, 3], "a2": [1, 2, 5]}
    sub = tiny_sub(tiny_cnn, TASK.labels, channels=channels)
    got = import_subnetwork(tiny_cnn, full=full_model(tiny_cnn), slim=build(sub), task=TASK)
    assert same(got.channels, channels)


def test_equal_filters_are_told_apart_by_their_order_or_not_at_all(tiny_base, tiny_sub):
    """Dead filters, all zero: any of them is right, and the channels come back in order."""
    plain = tiny_base("tiny_cnn")
    weights = {k: np.array(v) for k, v in plain.weights.items()}
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        weights[name][[2, 3, 6]] = 0
    weights["conv2.weight"][:, [2, 3, 6]] = 0
    base = load_base("tiny_cnn", weights, input=plain.input)
    sub = tiny_sub(base, TASK.labels, channels={"a1": [0, 3, 5, 6]}, noise=0)
    got = import_subnetwork(base, full=full_model(base), slim=build(sub), task=TASK).channels["a1"].tolist()
    assert got == sorted(got) and set(got) - {2, 3, 6} == {0, 5} and len(got) == 4


def test_models_without_a_common_origin_raise(base, tiny_sub, tiny_base):
    full, slim, _ = pair(base, 0.5, 0, 0.0, tiny_sub)
    other = build(tiny_sub(tiny_base(base.name, 7), TASK.labels, keep=0.5))
    with pytest.raises(PlanError, match="nearest rows differ by") as caught:
        import_subnetwork(base, full=full, slim=other, task=TASK)
    assert len(caught.value.problems) == 4
    with pytest.raises(BaseMismatchError, match="other values"):
        import_subnetwork(tiny_base(base.name, 7), full=full, slim=slim, task=TASK)
    with pytest.raises(BaseMismatchError, match=r"missing|shape"):
        import_subnetwork(base, full=slim, slim=slim, task=TASK)


def test_a_permuted_slim_model_raises(tiny_cnn, tiny_sub):
    full, slim, _ = pair(tiny_cnn, 0.5, 0, 0.0, tiny_sub)
    state = {k: v.clone() for k, v in slim.state_dict().items()}
    order = [4, 3, 2, 1, 0]
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[name] = state[name][order]
    state["conv2.weight"] = state["conv2.weight"][:, order]
    with pytest.raises(PlanError, match=r"a1 \(conv1\)"):
        match(tiny_cnn, full.state_dict(), state)


def test_the_full_models_head_may_be_another(tiny_cnn, tiny_sub):
    full, slim, channels = pair(tiny_cnn, 0.5, 3, 0.0, tiny_sub)
    full = copy.deepcopy(full)
    full.fc = torch.nn.Linear(12, 3)
    assert same(import_subnetwork(tiny_cnn, full=full, slim=slim, task=TASK).channels, channels)


def test_a_slim_model_with_the_wrong_number_of_classes(tiny_cnn, tiny_sub):
    full, slim, _ = pair(tiny_cnn, 0.5, 0, 0.0, tiny_sub)
    with pytest.raises(RecordError, match=r"fc\.bias: shape \[3\], expected \[2\]"):
        import_subnetwork(tiny_cnn, full=full, slim=slim, task=Task(labels=("dog", "cat")))


def test_alignment_is_the_cheapest_ascending_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 8))
        m = int(rng.integers(1, n + 1))
        costs = rng.integers(0, 5, (m, n)).astype(float)  # integers, so that there are ties
        columns = _align(costs).tolist()
        assert columns == sorted(set(columns)) and len(columns) == m
        cheapest = min(sum(costs[i, c] for i, c in enumerate(chosen)) for chosen in combinations(range(n), m))
        assert sum(costs[i, c] for i, c in enumerate(columns)) == cheapest


def test_resnet20_pair_at_keep_a_tenth():
    base = load_base("resnet20", num_classes=10)
    rng = np.random.default_rng(0)
    sizes = {a: info["n"] for a, info in base.plan["axes"].items()}
    channels = {a: np.sort(rng.choice(sizes[a], k, replace=False)) for a, k in keep_counts(base.plan, 0.1).items()}
    full = full_model(base)
    slim = cut(full, base.plan, channels, new_head(base, 3, channels, seed=0))
    assert same(import_subnetwork(base, full=full, slim=slim, task=TASK).channels, channels)
