from copy import deepcopy
from dataclasses import replace
from importlib import import_module

import pytest
import torch

import mvp
from mvp.bases import full_model
from mvp.budget import Budget
from mvp.data import Data
from mvp.gates import Gates
from mvp.plan import prunable
from mvp.producers import prune
from mvp.producers.bbdropout import BBDropout, chosen_units, draw_for_images, falls
from mvp.producers.gating import BetaGate, fold
from mvp.surgery import masked
from mvp.train import accuracy
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

module = import_module("mvp.producers.bbdropout")
SHORT = {"producer": "bbdropout", "steps": 6, "finetune_steps": 2, "batch_size": 16}


def test_every_image_has_its_own_draw_of_one_pi():
    gate = BetaGate(3, start=0.0)
    torch.manual_seed(0)
    shares = torch.stack([(draw_for_images(gate, 400) > 0.5).float().mean(0) for _ in range(300)]).detach()
    # Over draws of pi the share of ones is pi itself: with a = softplus(0), b = 1, its variance is that of pi.
    a = float(gate.a[0].detach())
    variance = a / (a + 2) - (a / (a + 1)) ** 2
    assert shares.shape == (300, 3)
    assert shares.mean() == pytest.approx(a / (a + 1), abs=0.03)
    assert shares.var(0).tolist() == pytest.approx([variance + 0.17 / 400] * 3, rel=0.3)
    assert draw_for_images(gate, 400).var(0).min() > 0.0


@pytest.mark.parametrize(("steps", "expected"), [(1, [1, 1]), (10, [5, 8]), (300, [150, 240])])
def test_rates_fall_at_half_and_at_four_fifths(steps, expected):
    assert falls(steps) == expected


def test_the_loss_is_cross_entropy_plus_the_scaled_kl(monkeypatch):
    """The gradient of a gate after one step's backward, against the sum of both terms taken apart."""
    base, data = tiny.base(), tiny.task()
    kept = {}

    class Spy(torch.optim.SGD):
        def __init__(self, groups):
            kept["groups"] = groups
            super().__init__([{"params": g["params"], "lr": 0.0} for g in groups], lr=0.0)

        def step(self, closure=None):
            kept.setdefault("grads", [p.grad.clone() for p in kept["groups"][1]["params"]])

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    grads = {}
    for scale in (0.0, 30.0):
        kept.clear()
        prune(base, data, keep=0.5, kl=scale, **{**SHORT, "steps": 1, "finetune_steps": 0})
        grads[scale] = kept["grads"]
    groups = kept["groups"]
    assert (groups[0]["lr"], groups[0]["weight_decay"], groups[1]["lr"]) == (1e-3, 1e-4, 0.1)
    gates = [BetaGate(base.plan["axes"][axis]["n"], 5.0) for axis in prunable(base.plan)]
    sum(gate.kl() for gate in gates).backward()
    terms = [p.grad for gate in gates for p in gate.parameters()]
    for without, with_kl, term in zip(grads[0.0], grads[30.0], terms, strict=True):
        torch.testing.assert_close(with_kl - without, 30 / len(data.train_images) * term, rtol=1e-3, atol=1e-5)
        assert without.abs().max() > 0


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_gates_of_one_residual_group_are_one(name, monkeypatch):
    seen = []

    class Spy(Gates):
        def _pass(self, x, gates):
            seen.append({key: self.scales[key] for key in self.scales})
            return super()._pass(x, gates)

    monkeypatch.setattr(module, "Gates", Spy)
    prune(tiny.base(name), tiny.task(), keep=0.5, **SHORT)
    for scales in seen:
        by_axis = {}
        for (axis, _), scale in scales.items():
            assert by_axis.setdefault(axis, scale) is scale and scale.ndim == 2
        assert sorted(by_axis) == sorted(prunable(tiny.base(name).plan))


def test_the_units_with_the_largest_expected_gates_stay_and_carry_them(monkeypatch):
    """Without fine-tuning the result is the gated test-time network, cut."""
    caught = {}

    def spy(model, plan, gates):
        caught.update(gates=gates, full=deepcopy(model).eval())
        fold(model, plan, gates)

    monkeypatch.setattr(module, "fold", spy)
    base, data = tiny.base(), tiny.task()
    sub = prune(base, data, keep=0.5, **{**SHORT, "steps": 60, "finetune_steps": 0, "gate_lr": 0.05, "kl": 1.0})
    scores = {axis: gate.double().numpy() for axis, gate in caught["gates"].items()}
    assert min(s.std() for s in scores.values()) > 1e-3
    expected = Budget.of(base, 3, keep=0.5).fill(scores, floor=0.25)
    assert {a: k.tolist() for a, k in sub.channels.items()} == {a: k.tolist() for a, k in expected.items()}
    reference = masked(caught["full"], base.plan, expected)
    with torch.no_grad(), Gates(reference, base.plan, activations=False) as gates:
        gates.scales.update({key: caught["gates"][key[0]] for key in gates.scales})
        x = tiny.SPEC(data.test_images)
        torch.testing.assert_close(mvp.build(sub)(x), reference(x), rtol=1e-4, atol=1e-4)


def test_the_threshold_takes_what_the_gates_say():
    expected = {"a0": torch.tensor([0.5, 9e-4, 1e-3, 0.0]), "a1": torch.tensor([1e-5, 8e-4, 2e-4])}
    sets = chosen_units(expected, None)
    assert {axis: kept.tolist() for axis, kept in sets.items()} == {"a0": [0, 2], "a1": [1]}


def test_no_axis_falls_below_half_of_its_share():
    """All gates of a1 are below all of a0: without a floor a1 would be left with one unit."""
    expected = {"a0": torch.linspace(0.5, 0.9, 8), "a1": torch.linspace(0.1, 0.2, 12)}
    budget = Budget.of(tiny.base(), 3, keep=0.5)
    free, held = chosen_units(expected, budget), chosen_units(expected, budget, 0.25)
    assert len(free["a1"]) < 3 == len(held["a1"]) and held["a1"].tolist() == [9, 10, 11]
    for keep in (0.01, 0.05, 0.1, 0.3, 0.37, 0.5, 0.9, 1.0):  # half of a share never costs more than the share
        chosen_units(expected, Budget.of(tiny.base(), 3, keep=keep), keep / 2)


def test_a_larger_kl_weight_leaves_fewer_units():
    options = {**SHORT, "size": "threshold", "steps": 60, "gate_lr": 0.5, "start": -1}
    widths = []
    for scale in (0.0, 1e3):
        sub = prune(tiny.base(), tiny.task(), keep=0.5, kl=scale, **options)
        widths.append(sum(map(len, sub.channels.values())))
    assert widths[0] > widths[1] >= 2


def test_an_uninformative_unit_loses_its_gate():
    """A unit that no later layer reads has no gradient but the KL's."""
    base = tiny.base()
    model = full_model(base)
    with torch.no_grad():
        model.conv3.weight[:, :6] = 0
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    dead = mvp.load_base("tests-cnn", weights, num_classes=10, input=tiny.INPUT, plan=base.plan)
    sub = prune(dead, tiny.task(), keep=0.5, **{**SHORT, "steps": 60, "lr": 0.0, "kl": 1.0})
    assert min(sub.channels["a1"]) >= 6


def test_it_learns_the_task():
    sub = prune(tiny.base(), tiny.task(), keep=0.5, **{**SHORT, "steps": 80, "finetune_steps": 80, "kl": 1.0})
    data = tiny.task()
    assert sub.accuracy == accuracy(mvp.build(sub), data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU)
    assert sub.accuracy > 0.8
    assert prune(tiny.base(), data, producer="random", keep=0.5).accuracy < 0.7
    assert sub.metrics["steps"] == 160 and sub.metrics["seconds"] > 0


def test_the_slim_network_is_what_is_fine_tuned(monkeypatch):
    sizes = []
    real = module.run_steps

    def spy(model, *args, **options):
        sizes.append((sum(p.numel() for p in model.parameters()), options["steps"]))
        return real(model, *args, **options)

    monkeypatch.setattr(module, "run_steps", spy)
    sub = prune(tiny.base(), tiny.task(), keep=0.3, **SHORT)
    assert sizes == [(sub.params, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"finetune_steps": -1}, {"kl": -1}, {"kl": float("nan")}, {"size": "macs"}, {"batch_size": 1},
        {"lr": "fast"}, {"gate_lr": -0.1}, {"start": -11}, {"weight_decay": None},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(OptionError, match=f"bbdropout: .*(.|\n)*{next(iter(options))}"):
        BBDropout(**options)


def test_one_image_is_too_few():
    d = tiny.task()
    one = Data("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few images"):
        prune(tiny.base(), one, keep=0.5, **SHORT)


def test_a_base_without_prunable_units():
    base = tiny.base()
    axes = {name: axis | {"unsupported": "none of it"} for name, axis in base.plan["axes"].items()}
    with pytest.raises(OptionError, match="bbdropout: tests-cnn has no"):
        prune(replace(base, plan=base.plan | {"axes": axes}), tiny.task(), keep=0.5, **SHORT)
