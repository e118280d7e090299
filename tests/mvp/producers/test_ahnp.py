import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mvp
from mvp.bases import full_model, load_base
from mvp.plan import keep_counts
from mvp.producers import ahnp, prune
from mvp.producers.ahnp import AHNP, _Run, fold, pools, survivors
from mvp.subnetwork import task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

AXES = ["a1", "a3", "a4", "a6"]  # heads and nodes of two blocks
SHORT = {"steps": 20, "finetune_steps": 5, "batch_size": 16, "lr": 1e-3, "lr_head": 1e-2}


def batch():
    data = tiny.task()
    return tiny.SPEC(data.train_images[:16]), data.train_labels[:16]


def new_run(**options):
    base = tiny.base("vit")
    return _Run(AHNP(**options), task_model(base, 3), dict(base.plan), AXES)


def random_scores(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {a: 0.5 + torch.rand(tiny.base("vit").plan["axes"][a]["n"], generator=rng) for a in AXES}


def naive_forward(model, x, scores):
    """The transformer written out, each head's output and each hidden node times its score."""
    x = model.patch_embed(x)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for block, (heads, nodes) in zip(model.blocks, [("a1", "a3"), ("a4", "a6")]):
        h, attn = block.norm1(x), block.attn
        n, tokens, width = h.shape
        q, k, v = attn.qkv(h).view(n, tokens, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        out = ((q @ k.transpose(-1, -2)) * (width // 3) ** -0.5).softmax(-1) @ v
        out = out * scores[heads].view(1, 3, 1, 1)
        x = x + attn.proj(out.transpose(1, 2).reshape(n, tokens, width))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))) * scores[nodes])
    return model.head(model.norm(x)[:, 0])


def test_a_score_multiplies_its_heads_or_nodes_output():
    run, (x, _), scores = new_run(), batch(), random_scores()
    with torch.no_grad():
        for axis, score in run.scores.items():
            torch.testing.assert_close(score, torch.ones_like(score))
            score.copy_(scores[axis])
        run.model.eval()
        plain = run.model(x)
        with run.gated():
            scored = run.model(x)
        torch.testing.assert_close(scored, naive_forward(run.model, x, scores), rtol=1e-4, atol=1e-4)
        assert (scored - plain).abs().max() > 1e-2


def test_folded_scores_leave_the_output_as_it_was_and_dropped_ones_give_the_plain_network():
    run, (x, _) = new_run(), batch()
    with torch.no_grad():
        for axis, value in random_scores().items():
            run.scores[axis].copy_(value)
        plain = run.model.eval()(x)
        with run.gated():
            scored = run.model(x)
        torch.testing.assert_close(run.finish(folded=False)(x), plain, rtol=0, atol=0)
        torch.testing.assert_close(run.finish(folded=True)(x), scored, rtol=1e-4, atol=1e-4)


def test_a_step_is_adamw_on_the_loss_plus_the_penalty():
    l1, run, (x, y) = 0.02, new_run(lr=1e-3, lr_scores=0.05, lr_head=0.01, weight_decay=0.1), batch()
    model, scores = task_model(tiny.base("vit"), 3).train(), random_scores()
    with torch.no_grad():
        for axis, value in scores.items():
            run.scores[axis].copy_(value - 0.7)  # some negative
    mine = {a: (v - 0.7).requires_grad_() for a, v in scores.items()}
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    loss = F.cross_entropy(naive_forward(model, x, mine), y) + l1 * sum(v.abs().sum() for v in mine.values())
    loss.backward()
    run.step(x, y, l1=l1)

    def first_step(p, g, lr, decay):  # AdamW's first step: the moments' biases cancel
        return p * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)

    for axis, value in mine.items():
        big = value.grad.abs() > 1e-5  # elsewhere rounding decides the sign
        torch.testing.assert_close(
            run.scores[axis][big], first_step(value, value.grad, 0.05, 0.0)[big], rtol=0, atol=1e-5
        )
        assert big.float().mean() > 0.9
    now = dict(run.model.named_parameters())
    for k, p in model.named_parameters():
        want = first_step(before[k], p.grad, 0.01 if k.startswith("head.") else 1e-3, 0.1)
        big = p.grad.abs() > 1e-5
        torch.testing.assert_close(now[k][big], want[big], rtol=0, atol=1e-5)


def test_the_penalty_pulls_scores_down():
    x, y = batch()
    ends = []
    for l1 in (0.0, 10.0):
        run = new_run()
        for _ in range(3):
            run.step(x, y, l1=l1)
        ends.append(np.concatenate(list(run.values().values())))
    assert np.allclose(ends[1], 0.85, atol=0.01)  # three steps of 0.05 against it
    assert ends[0].max() > 1 > ends[0].min()


def test_the_lowest_scores_of_a_pool_go_until_it_has_its_size():
    scores = {
        "h": np.array([0.9, 0.1, 0.5]),
        "n0": np.array([0.3, 0.2, 0.8, 0.7]),
        "n1": np.array([0.6, 0.4, 0.9, 1.0]),
    }
    target = {"h": 1, "n0": 2, "n1": 1}
    kept = survivors(scores, target, [(["h"], 2), (["n0", "n1"], 5)])
    assert {a: k.tolist() for a, k in kept.items()} == {"h": [0, 2], "n0": [2, 3], "n1": [0, 2, 3]}
    # n0 has reached its target: although 0.7 and 0.8 are lower than 0.9, n1 pays the rest.
    kept = survivors(scores, target, [(["h"], 1), (["n0", "n1"], 3)])
    assert {a: k.tolist() for a, k in kept.items()} == {"h": [0], "n0": [2, 3], "n1": [3]}
    kept = survivors(scores, target, [(["h"], 1), (["n0", "n1"], 3)], 0.5)
    assert {a: k.tolist() for a, k in kept.items()} == {"h": [0, 2], "n0": [2, 3], "n1": [0, 2, 3]}
    equal = survivors({"a": np.ones(4)}, {"a": 1}, [(["a"], 2)])
    assert equal["a"].tolist() == [0, 1]


def test_pools_fall_from_everything_to_the_target():
    plan, target = tiny.base("vit").plan, {"a1": 1, "a3": 7, "a4": 1, "a6": 7}
    for left, heads, nodes in ((1.0, 6, 48), (0.5, 4, 31), (0.0, 2, 14)):
        assert pools(plan, target, left) == [(["a1", "a4"], heads), (["a3", "a6"], nodes)]


def test_the_count_falls_steadily_and_ends_where_it_should(monkeypatch):
    counts, plain = [], _Run.shrink

    def watched(run, kept):
        plain(run, kept)
        counts.append(sum(len(run.sets[a]) for a in ("a3", "a6")))
        assert sum(p.numel() for p in run.model.blocks[0].mlp.fc1.parameters()) == 13 * len(run.sets["a3"])

    monkeypatch.setattr(_Run, "shrink", watched)
    sub = prune(tiny.base("vit"), tiny.task(), producer="ahnp", keep=0.3, **{**SHORT, "prune_every": 2})
    assert counts == [round(14 + (48 - 14) * (1 - j / 10)) for j in (2, 4, 6, 8, 10)]
    assert {a: len(k) for a, k in sub.channels.items()} == keep_counts(tiny.base("vit").plan, 0.3)
    counts.clear()
    prune(tiny.base("vit"), tiny.task(), producer="ahnp", keep=0.3, **SHORT, prune_every=7, until=0.3)
    assert counts == [14]  # the sixth step is the last one of the pruning


def test_a_fixed_threshold_removes_what_is_below_it_and_the_end_takes_the_rest():
    fixed = {**SHORT, "threshold": "fixed"}
    none = prune(tiny.base("vit"), tiny.task(), producer="ahnp", keep=0.3, **fixed, tau=0.0, l1=0.0)
    early = prune(tiny.base("vit"), tiny.task(), producer="ahnp", keep=0.3, **fixed, tau=0.5, l1=10.0)
    assert none.metrics["forced"] == 2 * (24 - 7) + 2 * (3 - 1) and early.metrics["forced"] == 0
    for sub in (none, early):
        assert {a: len(k) for a, k in sub.channels.items()} == keep_counts(tiny.base("vit").plan, 0.3)


def test_shrinking_keeps_scores_moments_and_whole_heads():
    run, (x, y) = new_run(), batch()
    for _ in range(3):
        run.step(x, y, l1=1e-3)
    kept = {"a1": np.array([0, 2]), "a3": np.array([3, 4, 9]), "a4": np.array([1]), "a6": np.arange(24)}
    old = {k: run.optimizer.state[p]["exp_avg"].clone() for k, p in run.model.named_parameters()}
    qkv, score = old["blocks.0.attn.qkv.weight"], run.scores["a1"].detach().clone()
    run.shrink(kept)
    now = dict(run.model.named_parameters())
    moment = run.optimizer.state[now["blocks.0.attn.qkv.weight"]]["exp_avg"]
    assert torch.equal(moment, qkv.view(3, 3, 4, 12)[:, [0, 2]].reshape(24, 12))
    assert torch.equal(
        run.optimizer.state[now["blocks.0.mlp.fc2.weight"]]["exp_avg"], old["blocks.0.mlp.fc2.weight"][:, [3, 4, 9]]
    )
    assert torch.equal(run.optimizer.state[now["head.bias"]]["exp_avg"], old["head.bias"])
    assert torch.equal(run.scores["a1"], score[[0, 2]]) and run.sets["a3"].tolist() == [3, 4, 9]
    assert (
        run.optimizer.state[run.scores["a3"]]["step"] == 3
        and len(run.optimizer.state[run.scores["a3"]]["exp_avg"]) == 3
    )
    assert (run.model.blocks[0].attn.num_heads, run.model.blocks[1].attn.num_heads) == (2, 1)
    run.step(x, y, l1=1e-3)
    run.shrink({"a1": np.array([1]), "a3": np.array([2]), "a4": np.array([0]), "a6": np.array([5])})
    assert {a: s.tolist() for a, s in run.sets.items()} == {"a1": [2], "a3": [9], "a4": [1], "a6": [5]}


def test_a_unit_that_hurts_goes_and_one_that_the_task_needs_stays():
    """Only one node of each block carries anything: its score is the one that must not fall."""
    base = tiny.base("vit")
    model = full_model(base)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight[:, :5] *= 0.0
            block.mlp.fc2.weight[:, 6:] *= 0.0
            block.mlp.fc2.weight[:, 5] *= 4
    state = dict(model.state_dict())
    lame = load_base("tests-vit", state, num_classes=10, input=tiny.INPUT, plan=base.plan)
    sub = prune(lame, tiny.task(), producer="ahnp", keep=0.05, **{**SHORT, "steps": 40, "lr": 0.0, "l1": 1e-3})
    assert sub.channels["a3"].tolist() == [5] and sub.channels["a6"].tolist() == [5]


def test_it_learns_and_beats_random_nodes_and_heads():
    data = tiny.task()
    sub = prune(tiny.base("vit"), data, producer="ahnp", keep=0.3, **{**SHORT, "steps": 60})
    random = mvp.finetune(prune(tiny.base("vit"), data, producer="random", keep=0.3), data, steps=5, batch_size=16)
    assert sub.accuracy > 0.8 and sub.accuracy > random.accuracy
    assert sub.metrics["steps"] == 65 and "forced" not in sub.metrics


def test_folding_and_dropping_differ_only_where_the_scores_are_removed():
    runs = [prune(tiny.base("vit"), tiny.task(), producer="ahnp", keep=0.3, **{**SHORT, "finetune_steps": 0}, remove=r)
            for r in ("fold", "drop")]  # fmt: skip
    assert all(np.array_equal(runs[0].channels[a], runs[1].channels[a]) for a in AXES)
    differ = {k for k, v in runs[0].weights.items() if not np.array_equal(v, runs[1].weights[k])}
    assert differ == {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn.proj", "mlp.fc2")}


class TwoReaders(nn.Module):
    """A gated MLP: two layers write the hidden nodes together, and one place reads their product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(self.out(F.silu(self.a(x)) * self.b(x)))


def test_nodes_written_by_two_layers_are_scaled_once():
    from mvp.plan import make_plan

    model = TwoReaders().eval()
    plan = make_plan(model, (3, 8, 8))
    axis = next(a for a, entry in plan["axes"].items() if len(entry["writers"]) == 2)
    run = _Run(AHNP(), model, plan, [axis])
    assert {writer["gate"] for writer in plan["axes"][axis]["writers"]} == {"out"}
    x, s = torch.rand(5, 3, 8, 8), torch.linspace(0.1, 1.5, 6)
    with torch.no_grad():
        run.scores[axis].copy_(s)
        hidden = F.silu(model.a(x.mean((2, 3)))) * model.b(x.mean((2, 3)))
        want = model.fc(model.out(hidden * s))
        with run.gated():
            torch.testing.assert_close(model(x), want)
        fold(model, plan, run.scores)
        torch.testing.assert_close(model(x), want)


def test_convolutions_have_nothing_for_it():
    with pytest.raises(OptionError, match="ahnp: tests-cnn has no heads or MLP nodes"):
        prune(tiny.base(), tiny.task(), producer="ahnp", keep=0.3)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"finetune_steps": -1}, {"threshold": "mean"}, {"tau": -1}, {"until": 1.5}, {"prune_every": 0},
     {"l1": -1}, {"lr_scores": float("nan")}, {"batch_size": 1}, {"remove": "keep"}],
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        AHNP(**options)


def test_too_few_images():
    d = tiny.task()
    one = type(d)("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few images"):
        prune(tiny.base("vit"), one, producer="ahnp", keep=0.3)


@pytest.mark.slow
def test_deit_tiny():
    base = load_base("timm:deit_tiny_patch16_224", num_classes=10)
    sub = prune(base, tiny.task(), producer="ahnp", keep=0.1, steps=2, finetune_steps=1, batch_size=2, prune_every=1)
    model = mvp.build(sub)
    assert model(torch.rand(2, 3, 224, 224)).shape == (2, 3)
    for block in model.blocks:
        assert block.attn.num_heads == 1 and block.attn.qkv.weight.shape == (3 * 64, 192)
        assert block.mlp.fc1.weight.shape == (77, 192)
    assert sum(p.numel() for p in model.parameters()) == sub.params and ahnp.KINDS == ("head", "node")
