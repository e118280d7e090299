import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mvp.data import Data
from mvp.finetune import finetune, is_transformer, make_optimizer, run_steps, seeded_noise
from mvp.producers import prune
from mvp.subnetwork import build
from mvp.train import accuracy, place
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import BaseMismatchError, DataError, OptionError


def start(name="cnn", keep=0.5, **options):
    options = options or {"producer": "random"}
    return prune(tiny.base(name), tiny.task(), keep=keep, **options)


def same_weights(a, b):
    return a.weights.keys() == b.weights.keys() and all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)


def test_no_steps_only_measure():
    sub = start()
    unmeasured = replace(sub, metrics={"other": 1.0})
    measured = finetune(unmeasured, tiny.task(), steps=0)
    assert same_weights(measured, sub)
    assert measured.accuracy == sub.accuracy and measured.metrics["other"] == 1.0


@pytest.mark.parametrize(("name", "lr"), [("cnn", 0.05), ("vit", 3e-3)])
def test_it_learns_separable_classes(name, lr):
    sub, data = start(name), tiny.task()
    trained = finetune(sub, data, steps=40, batch_size=20, lr=lr)
    assert sub.accuracy < 0.7 < 0.9 < trained.accuracy
    assert accuracy(build(trained), data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU) == trained.accuracy
    assert trained.metrics["finetune_seconds"] > 0


def test_only_weights_options_and_metrics_change():
    sub = replace(start(), embeddings={"prototype": np.ones(3, np.float32)}, parents=("p",), generation=2)
    trained = finetune(sub, tiny.task(), steps=2, batch_size=8, seed=5)
    for field in ("task", "base", "producer", "keep", "mode", "kind", "init", "seed", "parents", "generation", "params",
                  "macs", "removed_blocks", "kept_tokens"):  # fmt: skip
        assert getattr(trained, field) == getattr(sub, field), field
    assert all(np.array_equal(trained.channels[a], sub.channels[a]) for a in sub.channels)
    assert np.array_equal(trained.embeddings["prototype"], sub.embeddings["prototype"])
    assert not same_weights(trained, sub) and trained.id != sub.id


def test_options_are_recorded():
    trained = finetune(start(steps=1, prune_every=1, prune_share=0.5), tiny.task(), steps=3, batch_size=8, seed=7)
    assert trained.options["finetune"] == {
        "steps": 3, "lr": 0.01, "batch_size": 8, "weight_decay": 5e-4, "seed": 7, "optimizer": "SGD",
    }  # fmt: skip
    assert trained.options["steps"] == 1 and json.dumps(dict(trained.options))
    other = finetune(start("vit"), tiny.task(), steps=1, batch_size=8, lr=1e-3, weight_decay=0.1)
    assert other.options["finetune"] == {
        "steps": 1, "lr": 1e-3, "batch_size": 8, "weight_decay": 0.1, "seed": 0, "optimizer": "AdamW",
    }  # fmt: skip


def test_the_seed_decides_the_batches():
    sub = start()
    runs = [finetune(sub, tiny.task(), steps=3, batch_size=8, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].id == runs[1].id != runs[2].id
    assert finetune(replace(sub, seed=1), tiny.task(), steps=3, batch_size=8).weights_digest == runs[0].weights_digest


def test_dropout_follows_the_seed_and_leaves_torchs_generator_alone():
    sub = start("dropout")
    before = torch.get_rng_state()
    one = finetune(sub, tiny.task(), steps=3, batch_size=8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert finetune(sub, tiny.task(), steps=3, batch_size=8, seed=1).id == one.id
    with seeded_noise(1, tiny.CPU):
        a = torch.rand(3)
    with seeded_noise(2, tiny.CPU):
        b = torch.rand(3)
    assert not torch.equal(a, b)


def test_the_optimiser_follows_the_architecture():
    for name, kind, lr, decay in (("cnn", torch.optim.SGD, 0.01, 5e-4), ("vit", torch.optim.AdamW, 2e-4, 0.05)):
        base, model = tiny.base(name), build(start(name))
        assert is_transformer(base) == (name == "vit")
        optimizer = make_optimizer(model, base)
        group = optimizer.param_groups[0]
        assert type(optimizer) is kind and (group["lr"], group["weight_decay"]) == (lr, decay)
        assert group.get("momentum", 0.9) == 0.9
        group = make_optimizer(model, base, lr=0.0, weight_decay=0.0).param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.0, 0.0)


def test_the_rate_falls_as_a_cosine_to_nearly_zero():
    model, rates = place(build(start()), tiny.CPU), []
    optimizer = make_optimizer(model, tiny.base(), lr=1.0)
    run_steps(
        model, optimizer, tiny.task(), tiny.SPEC, steps=4, batch_size=8, seed=0, device=tiny.CPU,
        after=lambda done: rates.append((done, optimizer.param_groups[0]["lr"])),
    )  # fmt: skip
    assert [done for done, _ in rates] == [1, 2, 3, 4]
    assert [rate for _, rate in rates] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert not model.training


def test_measuring_on_the_way_changes_nothing():
    data, ends = tiny.task(), []
    for after in (None, "measure"):
        model = place(build(start("dropout")), tiny.CPU)

        def measure(_, model=model):
            model.eval()
            accuracy(model, data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU)

        run_steps(
            model, make_optimizer(model, tiny.base("dropout")), data, tiny.SPEC, steps=4, batch_size=8, seed=0,
            device=tiny.CPU, after=measure if after else None,
        )  # fmt: skip
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_independent_filters_that_are_gone_stay_zero(name):
    options = {"steps": 1, "prune_every": 1, "prune_share": 0.5, "batch_size": 16, "mode": "independent"}
    sub = start(name, producer="ifp", **options)
    trained = finetune(sub, tiny.task(), steps=5, batch_size=16, lr=0.05 if name == "cnn" else 1e-3)
    for before, after in ((sub.weights[k], trained.weights[k]) for k in sub.weights if sub.weights[k].ndim):
        assert not after[(before == 0) & (np.abs(before).max() > 0)].any()
    assert not same_weights(sub, trained) and any((w == 0).any() for w in trained.weights.values())


def test_data_of_another_task():
    with pytest.raises(BaseMismatchError, match=r"got cat, dog, horse; expected dog, cat, horse"):
        finetune(start(), tiny.task(1, 0, 2))


@pytest.mark.parametrize(
    "options", [{"steps": -1}, {"batch_size": 1}, {"lr": -0.1}, {"weight_decay": -1}, {"device": "cuda:99"}]
)
def test_options_out_of_range(options):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(OptionError):
        finetune(start(), tiny.task(), **options)


def test_too_few_images():
    d = tiny.task()
    one = Data("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="got 1 for training, 24 for testing"):
        finetune(start(), one)


def test_element_masks_would_be_lost_and_are_refused():
    sub = replace(start(), kind="element", weights_digest="")
    with pytest.raises(OptionError, match="kind 'element'"):
        finetune(sub, tiny.data())
