from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors import safe_open

from mvp.bases import full_model
from mvp.producers.stamp_file import generator_base, load_generator
from mvp.producers.stamp_meta import Masked
from mvp.producers.stamp_train import meta_train, split_classes
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

module = import_module("mvp.producers.stamp_train")
SHORT = {"splits": 3, "iterations": 4, "tasks": 2, "images": 24, "batch_size": 12, "width": 16}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator of 40 iterations over three tasks of three animals each, on W from the tiny base."""
    out = tmp_path_factory.mktemp("stamp") / "generator.safetensors"
    options = {**SHORT, "iterations": 40, "tasks": 3, "images": 30, "batch_size": 15, "kl": 0.1, "lr": 0.01}
    return out, meta_train(tiny.base(), tiny.data(), out, **options)


def read(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(("tasks", "n"), [(2, 5), (3, 3), (5, 2)])
def test_a_data_set_is_split_into_disjoint_tasks(tasks, n):
    parts = split_classes(tiny.data(), tasks, seed=1)
    labels = [label for part in parts for label in part.labels]
    assert [len(part.labels) for part in parts] == [n] * tasks and len(set(labels)) == tasks * n
    assert [p.labels for p in parts] == [p.labels for p in split_classes(tiny.data(), tasks, seed=1)]
    assert [p.labels for p in parts] != [p.labels for p in split_classes(tiny.data(), tasks, seed=2)]


def test_the_loss_falls(trained):
    _, curve = trained
    first, last = (sum(part) / 5 for part in (curve.error[:5], curve.error[-5:]))
    assert len(curve.error) == len(curve.loss) == 40
    assert last < 0.7 * first
    assert sum(curve.loss[-5:]) < sum(curve.loss[:5]) and all(a > b for a, b in zip(curve.loss, curve.error))


def test_masks_of_two_tasks_differ(trained):
    out, _ = trained
    base = generator_base(out)
    generator, _ = load_generator(out, base)
    model = Masked(full_model(base), base.plan, generator)
    masks = []
    for labels in ((0, 1, 2), (3, 4, 5)):
        with torch.no_grad():
            masks.append(model.expected(tiny.SPEC(tiny.task(*labels).train_images)))
    assert max(float((masks[0][a] - masks[1][a]).abs().max()) for a in masks[0]) > 1e-3


def test_an_outer_step_is_adam_on_the_sum_of_the_last_gradients(tmp_path, monkeypatch):
    """One iteration over two tasks of two mini-batches: only the gradients of the second ones count."""
    seen, runs, real = [], [], Masked.loss

    def spy(self, x, y, images, weight, rows):
        out = real(self, x, y, images, weight, rows)
        now = {n: p.detach().clone() for n, p in self.named_parameters()}
        if len(seen) % 2:  # the gradient of a task's last mini-batch, as it will be
            names, values = zip(*self.named_parameters(), strict=True)
            grads = torch.autograd.grad(out[0], values, retain_graph=True, allow_unused=True)
            now |= {f"d {n}": g for n, g in zip(names, grads, strict=True)}
        seen.append((len(x), len(images), weight, rows.tolist(), now))
        return out

    class Run(module._Run):
        def __init__(self, *args):
            super().__init__(*args)
            runs.append(self)

    monkeypatch.setattr(Masked, "loss", spy)
    monkeypatch.setattr(module, "_Run", Run)
    meta_train(tiny.base(), tiny.data(), tmp_path / "g.safetensors", **{**SHORT, "iterations": 1, "kl": 3.0})
    assert [entry[:3] for entry in seen] == [(12, 24, 3.0 / 60)] * 4
    parts = split_classes(tiny.data(), 3)
    tasks = [[tiny.LABELS.index(label) for label in part.labels] for part in parts]
    assert seen[0][3] == seen[1][3] in tasks and seen[2][3] == seen[3][3] in tasks and seen[0][3] != seen[2][3]
    start, first, second = seen[0][4], seen[1][4], seen[3][4]
    assert all(torch.equal(start[n], seen[2][4][n]) for n in start)  # both tasks start from the same parameters
    rates = {"network": 1e-3, "generator.gates": 1e-2, "generator.encoder": 1e-3}
    for name, parameter in runs[0].model.named_parameters():
        rate = next(rate for part, rate in rates.items() if name.startswith(part))
        total = first[f"d {name}"] + second[f"d {name}"]
        torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)
        # Adam's first step moves a parameter by its rate, against the sign of its gradient; the inner one did too.
        big = total.abs() > 1e-4
        torch.testing.assert_close(
            (parameter.detach() - start[name])[big], -rate * total[big].sign(), rtol=0.05, atol=1e-6
        )
        assert (first[name] - start[name]).abs().max() <= rate * 1.01
    assert any(not torch.equal(first[n], start[n]) for n in start)


def test_rates_fall_to_a_tenth_twice(tmp_path, monkeypatch):
    rates = []
    real = torch.optim.Adam.step

    def spy(self, closure=None):
        rates.append([g["lr"] for g in self.param_groups])
        return real(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    options = {**SHORT, "iterations": 10, "tasks": 1, "images": 12}  # one mini-batch: no inner step
    meta_train(tiny.base(), tiny.data(), tmp_path / "g.safetensors", **options)
    assert rates == [pytest.approx([f * r for r in (1e-3, 1e-2, 1e-3)]) for f in [1] * 5 + [0.1] * 3 + [0.01] * 2]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_run_ends_as_an_uninterrupted_one(after, tmp_path, monkeypatch):
    whole = meta_train("tests-dropout", tiny.data(), tmp_path / "whole.safetensors", **SHORT)
    out, real, left = tmp_path / "killed.safetensors", module._Run.iterate, [after]

    def dying(self):
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "iterate", dying)
        with pytest.raises(Killed):
            meta_train("tests-dropout", tiny.data(), out, **SHORT)
    assert not out.exists() and out.with_suffix(".ckpt").exists() == (after > 0)
    before = torch.get_rng_state()
    resumed = meta_train("tests-dropout", tiny.data(), out, **SHORT)
    assert resumed == whole and torch.equal(torch.get_rng_state(), before)
    (a, about_a), (b, about_b) = read(tmp_path / "whole.safetensors"), read(out)
    assert about_a == about_b and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    if after:
        with pytest.raises(OptionError, match="other arguments"):
            meta_train("tests-dropout", tiny.data(), out, **SHORT, seed=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"iterations": 0}, "iterations"), ({"tasks": 0}, "tasks"), ({"batch_size": 1}, "batch_size"),
        ({"kl": -1}, "kl"), ({"width": 18}, "width"), ({"frozen": 1}, "frozen"),
        ({"config": "large"}, "small or paper"),
        ({"nonsense": 1}, "no option nonsense"), ({"splits": 6}, "cannot split 10 classes into 6"),
        ({"splits": 0}, "cannot split"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options, match, tmp_path):
    with pytest.raises(OptionError, match=match):
        meta_train(tiny.base(), tiny.data(), tmp_path / "g.safetensors", **{**SHORT, **options})
    assert not list(tmp_path.iterdir())


def test_bases_and_tasks_that_do_not_fit(tmp_path):
    out = tmp_path / "g.safetensors"
    options = {k: v for k, v in SHORT.items() if k != "splits"}
    with pytest.raises(OptionError, match="no source tasks"):
        meta_train(tiny.base(), [], out, **options)
    with pytest.raises(OptionError, match="tests-vit has no filters"):
        meta_train(tiny.base("vit"), tiny.data(), out, **SHORT)


def test_tasks_of_any_classes_and_a_base_that_knows_them(tmp_path, monkeypatch):
    """Overlapping tasks of unequal size: one output a class; a base with these labels keeps its head."""
    runs = []

    class Run(module._Run):
        def iterate(self):
            runs.append((self.labels, self.model.network.fc.weight.detach().clone()))
            super().iterate()

    monkeypatch.setattr(module, "_Run", Run)
    tasks = [tiny.task(0, 1), tiny.task(1, 2, 3)]
    options = {k: v for k, v in SHORT.items() if k != "splits"} | {"iterations": 1}
    out = tmp_path / "g.safetensors"
    meta_train(tiny.base(), tasks, out, **options)
    assert generator_base(out).info["labels"] == runs[0][0] == list(tiny.LABELS[:4])
    out.with_suffix(".ckpt").unlink()
    knowing = replace(tiny.base(), info={"labels": list(tiny.LABELS)})
    meta_train(knowing, tasks, out, **options)
    assert runs[1][0] == list(tiny.LABELS) and generator_base(out).num_classes == 10
    assert torch.equal(runs[1][1], torch.from_numpy(knowing.weights["fc.weight"])) and runs[0][1].shape == (4, 8)
