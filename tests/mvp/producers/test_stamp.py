import hashlib
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import mvp
from mvp.budget import Budget
from mvp.data import Data
from mvp.gates import Gates
from mvp.producers import prune, recorded
from mvp.producers.gating import fold
from mvp.producers.stamp import Stamp, generator_base
from mvp.producers.stamp_meta import Masked
from mvp.producers.stamp_train import meta_train
from mvp.surgery import masked
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import BaseMismatchError, DataError, OptionError

module = import_module("mvp.producers.stamp")
SHORT = {"producer": "stamp", "prune_steps": 3, "finetune_steps": 2, "set_images": 12, "batch_size": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator of few iterations over other animals than the tests' task, with its own network."""
    out = tmp_path_factory.mktemp("stamp") / "generator.safetensors"
    options = {"iterations": 12, "tasks": 2, "images": 32, "batch_size": 16, "width": 16, "kl": 0.1, "lr": 0.01}
    meta_train(tiny.base(), [tiny.task(3, 4, 5, 6), tiny.task(6, 7, 8, 9)], out, **options)
    return out, generator_base(out)


def stamp(data=None, *, keep=0.5, seed=0, base="cnn", **options):
    chosen = {**SHORT, "generator": tiny.generator(base), **options}
    return prune(tiny.base(base), data or tiny.task(), keep=keep, seed=seed, **chosen)


def test_one_epoch_by_default():
    member = Stamp(generator=tiny.generator(), batch_size=16, set_images=12, finetune_steps=0)
    assert member.prune(tiny.base(), tiny.task(), keep=0.5).metrics["steps"] == 4  # 60 images


def test_w_pi_and_theta_are_adapted_at_their_rates(monkeypatch):
    rates, real = [], torch.optim.Adam.step

    def spy(self, closure=None):
        rates.append([(g["lr"], len(g["params"])) for g in self.param_groups])
        return real(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    stamp(prune_steps=10, kl=1.0, gate_lr=0.5)
    falling = [1] * 5 + [0.1] * 3 + [0.01] * 2
    assert [[lr for lr, _ in groups] for groups in rates] == [
        pytest.approx([f * r for r in (1e-3, 0.5, 1e-3)]) for f in falling
    ]
    assert all(n > 0 for _, n in rates[0])


def test_the_loss_is_of_one_fixed_set_and_a_draw_for_each_image(monkeypatch):
    seen, real = [], Masked.loss

    def spy(self, x, y, images, weight, *rows):
        seen.append((images, weight))
        out = real(self, x, y, images, weight, *rows)
        assert all(len(scale) == len(x) and scale.ndim == 2 for scale in self._hooks.scales.values())
        return out

    monkeypatch.setattr(Masked, "loss", spy)
    stamp(kl=6.0)
    assert len(seen) == 3 and all(weight == 6.0 / 60 for _, weight in seen)
    assert all(len(images) == 12 and torch.equal(images, seen[0][0]) for images, _ in seen)


def test_the_filters_with_the_largest_expected_masks_stay_and_carry_them(monkeypatch):
    from copy import deepcopy

    caught = {}

    def spy(model, plan, gates):
        caught.update(full=deepcopy(model).eval(), gates=gates)
        fold(model, plan, gates)

    monkeypatch.setattr(module, "fold", spy)
    base, data = tiny.base(), tiny.task()
    sub = stamp(finetune_steps=0, prune_steps=20, kl=1.0)
    scores = {axis: gate.double().numpy() for axis, gate in caught["gates"].items()}
    assert min(s.std() for s in scores.values()) > 1e-3
    expected = Budget.of(base, 3, keep=0.5).fill(scores, floor=0.25)
    assert {a: k.tolist() for a, k in sub.channels.items()} == {a: k.tolist() for a, k in expected.items()}
    reference = masked(caught["full"], base.plan, expected)
    with torch.no_grad(), Gates(reference, base.plan, activations=False) as gates:
        gates.scales.update({key: caught["gates"][key[0]] for key in gates.scales})
        x = tiny.SPEC(data.test_images)
        torch.testing.assert_close(mvp.build(sub)(x), reference(x), rtol=1e-4, atol=1e-4)


def test_the_threshold_takes_what_the_masks_say(monkeypatch):
    def adapted(self, path, base, data, kl, *_):
        model = module.task_model(base, len(data.labels))
        return model, {"a0": torch.linspace(0, 0.007, 8), "a1": torch.linspace(-0.001, 0.01, 12).clamp(min=0)}

    monkeypatch.setattr(Stamp, "_adapt", adapted)
    sub = stamp(size="threshold", finetune_steps=0)
    assert sub.channels["a0"].tolist() == list(range(1, 8)) and sub.channels["a1"].tolist() == list(range(2, 12))


def scripted(width_of):
    """Stands for the K steps: a0 and a1 keep width_of(kl) filters each."""

    def adapted(self, path, base, data, kl, *_):
        n = width_of(kl)
        masks = {axis: torch.where(torch.arange(size) < n, 0.5, 0.0) for axis, size in (("a0", 8), ("a1", 12))}
        return module.task_model(base, len(data.labels)), masks

    return adapted


@pytest.mark.parametrize("start", [1.0, 1e3])
def test_the_search_finds_the_kl_of_a_size(start, monkeypatch):
    """The width falls by one each time kl doubles; the target is that of 4 of 8 and 6 of 12."""
    monkeypatch.setattr(Stamp, "_adapt", scripted(lambda kl: max(1, 8 - int(np.log2(max(kl, 1))))))
    sub = stamp(size="search", kl=start, finetune_steps=0)
    limit = Budget.of(tiny.base(), 3, keep=0.5)
    widths = {axis: len(kept) for axis, kept in sub.channels.items()}
    wider = {axis: n + 1 for axis, n in widths.items()}
    assert sub.macs <= limit.limit < limit.cost(wider)
    assert max(1, 8 - int(np.log2(sub.metrics["kl"]))) == widths["a0"] == widths["a1"]


def test_a_size_that_no_kl_gives(monkeypatch):
    monkeypatch.setattr(Stamp, "_adapt", scripted(lambda kl: 8))
    with pytest.raises(OptionError, match="no kl up to 100000 leaves at most"):
        stamp(size="search")


def test_the_search_meets_the_target_on_a_network():
    sub = stamp(size="search", kl=100.0, gate_lr=0.3, prune_steps=12, keep=0.7)
    assert sub.macs <= Budget.of(tiny.base(), 3, keep=0.7).limit
    assert sub.metrics["kl"] > 0 and sub.options["kl"] == 100.0


def test_structure_only_keeps_the_architecture_alone():
    kept, fresh = stamp(finetune_steps=0), stamp(finetune_steps=0, structure_only=True)
    assert (kept.init, fresh.init) == ("pretrained", "reinit")
    assert all(np.array_equal(kept.channels[a], fresh.channels[a]) for a in kept.channels)
    assert fresh.weights["bn1.weight"].tolist() == [1.0] * len(fresh.channels["a0"])  # as torch starts a norm
    assert not np.array_equal(fresh.weights["conv1.weight"], kept.weights["conv1.weight"])
    other = stamp(finetune_steps=0, structure_only=True, seed=1)
    assert not np.array_equal(other.weights["conv1.weight"][0], fresh.weights["conv1.weight"][0])


def test_it_learns_an_unseen_task_from_the_meta_trained_network(trained):
    out, base = trained
    options = {**SHORT, "generator": out, "prune_steps": 40, "finetune_steps": 60, "kl": 0.05}
    sub = prune(base, tiny.task(), keep=0.5, **options)
    assert sub.base == base and sub.accuracy > 0.8
    assert prune(base, tiny.task(), producer="random", keep=0.5).accuracy < 0.7


def test_another_base_is_refused(trained):
    out, base = trained
    with pytest.raises(BaseMismatchError, match=f"{tiny.base().id[:12]}.*{base.id[:12]}.*generator_base"):
        prune(tiny.base(), tiny.task(), keep=0.5, **SHORT, generator=out)


def test_the_record_names_the_file_by_its_bytes_and_holds_the_encoding():
    path = tiny.generator()
    member = Stamp(generator=str(path))
    assert member.generator == path
    assert recorded(member)["generator"] == hashlib.sha256(path.read_bytes()).hexdigest()
    sub = stamp()
    assert sub.embeddings["stamp"].shape == (16,)
    assert np.array_equal(stamp(seed=1).embeddings["stamp"], sub.embeddings["stamp"])


def test_without_a_generator_it_says_how_to_make_one(tmp_path):
    with pytest.raises(OptionError, match="mvp meta-train"):
        prune(tiny.base(), tiny.task(), keep=0.5, producer="stamp")
    with pytest.raises(DataError, match="no mask generator"):
        prune(tiny.base(), tiny.task(), keep=0.5, producer="stamp", generator=tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"prune_steps": 0}, {"finetune_steps": -1}, {"kl": -1}, {"size": "macs"}, {"structure_only": 1},
        {"set_images": 1}, {"batch_size": 1}, {"lr": "fast"}, {"gate_lr": -0.1}, {"encoder_lr": None},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(OptionError, match=f"stamp: .*(.|\n)*{next(iter(options))}"):
        Stamp(**options)


def test_one_image_is_too_few():
    d = tiny.task()
    one = Data("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few images"):
        stamp(one)


def test_a_base_without_filters_that_can_go():
    base = tiny.base()
    axes = {name: axis | {"unsupported": "none of it"} for name, axis in base.plan["axes"].items()}
    with pytest.raises(OptionError, match="stamp: tests-cnn has no filters"):
        prune(replace(base, plan=base.plan | {"axes": axes}), tiny.task(), keep=0.5, **SHORT)
