import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import zoo
from mvp.data import Data
from mvp.finetune import finetune, is_transformer, make_optimizer, run_steps, seeded_noise
from mvp.producers import prune
from mvp.subnetwork import build
from mvp.train import accuracy, place
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import BaseMismatchError, DataError, OptionError, PlanError


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


def masked_start(name="cnn", keep=0.3):
    """A sub-network of full width that keeps a random share of the weights of two layers."""
    sub, rng = start(name, keep=1.0), np.random.default_rng(0)
    layers = (
        ("conv2.weight", "conv3.weight") if name == "cnn" else ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight")
    )
    masks = {k: rng.random(sub.weights[k].shape) < keep for k in layers}
    return replace(sub, kind="element", channels={}, element_masks=masks, weights_digest="")


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_removed_weights_stay_removed_whatever_momentum_and_decay_do(name):
    sub, lr = masked_start(name), 0.05 if name == "cnn" else 1e-3
    trained = finetune(sub, tiny.task(), steps=6, batch_size=16, lr=lr, weight_decay=0.1)
    assert (trained.kind, trained.keep, dict(trained.channels)) == ("element", 1.0, {})
    for k, mask in sub.element_masks.items():
        assert np.array_equal(trained.element_masks[k], mask)
        assert not trained.weights[k][~mask].any() and (trained.weights[k][mask] != 0).all()
    other = "fc.weight" if name == "cnn" else "blocks.1.attn.qkv.weight"
    assert (trained.weights[other] != sub.weights[other]).all()
    assert trained.accuracy == accuracy(
        build(trained), tiny.task().test_images, tiny.task().test_labels, tiny.SPEC, device=tiny.CPU
    )


def test_masks_hold_in_the_first_forward_pass_already():
    # The record's own weights are not zero where its masks are: what is measured is the masked network.
    sub = masked_start()
    assert all(sub.weights[k][~mask].any() for k, mask in sub.element_masks.items())
    measured = finetune(sub, tiny.task(), steps=0)
    assert all(not measured.weights[k][~mask].any() for k, mask in sub.element_masks.items())
    assert torch.equal(build(measured)(torch.ones(1, 3, 8, 8)), build(sub)(torch.ones(1, 3, 8, 8)))
    assert not torch.equal(build(start(keep=1.0))(torch.ones(1, 3, 8, 8)), build(sub)(torch.ones(1, 3, 8, 8)))
    model, seen = place(build(start(keep=1.0)), tiny.CPU), []
    model.conv2.register_forward_pre_hook(lambda m, _: seen.append(m.weight.detach().clone()))
    run_steps(
        model, make_optimizer(model, tiny.base()), tiny.task(), tiny.SPEC, steps=3, batch_size=8, seed=0,
        device=tiny.CPU, elements=sub.element_masks,
    )  # fmt: skip
    mask = torch.from_numpy(sub.element_masks["conv2.weight"])
    assert len(seen) == 3 and all(not w[~mask].any() and w[mask].all() for w in seen)


def test_a_fine_tuned_masked_network_goes_into_a_zoo_and_comes_back(tmp_path):
    trained = finetune(masked_start(), tiny.task(), steps=2, batch_size=16)
    z = zoo.open(tmp_path / "z")
    again = z.get(z.add(trained))
    assert again == trained and again.element_masks.keys() == trained.element_masks.keys()
    assert all(np.array_equal(again.element_masks[k], v) for k, v in trained.element_masks.items())
    assert torch.equal(build(again)(torch.ones(1, 3, 8, 8)), build(trained)(torch.ones(1, 3, 8, 8)))
    once_more = finetune(again, tiny.task(), steps=2, batch_size=16)
    assert once_more.id == finetune(trained, tiny.task(), steps=2, batch_size=16).id
    assert trained.id != replace(trained, element_masks={}, weights_digest="").id


def test_what_training_would_not_keep_is_refused():
    for fields, said in (({"kind": "mixed"}, "kind 'mixed'"), ({"kind": "element"}, "without masks")):
        with pytest.raises(OptionError, match=said):
            finetune(replace(start(), **fields, weights_digest=""), tiny.task())
    wrong = replace(masked_start(), element_masks={"conv2.weight": np.ones((2, 2), bool)}, weights_digest="")
    with pytest.raises(PlanError, match=r"conv2\.weight: a mask of"):
        finetune(wrong, tiny.task())
