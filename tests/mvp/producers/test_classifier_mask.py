import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mvp
from mvp.bases import full_model, load_base, register
from mvp.finetune import make_optimizer, run_steps
from mvp.nets import REGISTERED
from mvp.producers import prune
from mvp.producers.classifier_mask import (
    Classifier,
    ClassifierMask,
    MaskOptions,
    classifier_weights,
    largest,
)
from mvp.subnetwork import task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

FAST = {"steps": 6, "tune_steps": 3, "batch_size": 16}


class TinyVGG(nn.Module):
    """A gate of linear layers between two convolutions, then three linear layers, one of them over positions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.squeeze, self.conv2 = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 6), nn.Conv2d(6, 8, 3, 2)
        self.positions = nn.Linear(8, 8)
        self.fc1, self.fc2, self.out = nn.Linear(8, 10), nn.Linear(10, 7), nn.Linear(7, num_classes)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]))
        x = torch.relu(self.positions(x.flatten(2).transpose(1, 2))).mean(1)
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


@pytest.fixture(scope="module")
def vgg():
    register("tests-mask-vgg", TinyVGG)
    yield load_base("tests-mask-vgg", num_classes=10, input=tiny.INPUT)
    del REGISTERED["tests-mask-vgg"]


def run(base=None, *, keep=0.3, seed=0, **options):
    options = {**FAST, **options}
    return prune(base or tiny.base(), tiny.task(), producer="classifier_mask", keep=keep, seed=seed, **options)


# ------------------------------------------------------------------------------------------ which layers


def test_linear_layers_behind_the_last_convolution_that_see_one_vector_an_image(vgg):
    assert classifier_weights(full_model(vgg), vgg) == ["fc1.weight", "fc2.weight", "out.weight"]
    assert classifier_weights(full_model(tiny.base()), tiny.base()) == ["fc.weight"]
    assert classifier_weights(full_model(tiny.base("vit")), tiny.base("vit")) == ["head.weight"]


def test_looking_for_them_leaves_the_model_as_it_was():
    model = full_model(tiny.base("dropout")).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    classifier_weights(model, tiny.base("dropout"))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_base_without_a_head():
    import dataclasses

    base = tiny.base()
    bare = dataclasses.replace(base, plan={**base.plan, "head": []}, weights_digest="")
    with pytest.raises(OptionError, match="no head"):
        classifier_weights(full_model(base), bare)


# ------------------------------------------------------------------------------------------ the masks


@pytest.mark.parametrize("method", ["threshold", "l0"])
@pytest.mark.parametrize(("keep", "counts"), [(0.3, (24, 21, 6)), (0.001, (1, 1, 1)), (1.0, (80, 70, 21))])
def test_every_layer_keeps_its_share_and_nothing_else_goes(vgg, method, keep, counts):
    sub = run(vgg, keep=keep, method=method)
    assert sub.kind == "element" and not sub.channels
    kept = {name: int(mask.sum()) for name, mask in sub.element_masks.items()}
    assert kept == dict(zip(("fc1.weight", "fc2.weight", "out.weight"), counts, strict=True))
    for name, values in sub.weights.items():
        if name in sub.element_masks:
            assert not values[~sub.element_masks[name]].any()
        elif name != "out.weight":
            assert (values != 0).mean() > 0.9
    assert sub.metrics["weights_removed"] == 171 - sum(counts) and sub.metrics["steps"] == 9
    assert sub.params == sum(v.size for v in sub.weights.values())


def test_the_largest_and_of_equals_the_first():
    mask = largest(torch.tensor([[1.0, 3, 2], [3, 2, -math.inf]]), 3)
    assert mask.tolist() == [[False, True, True], [True, False, False]]


def test_the_threshold_cuts_the_smallest_of_the_trained_weights(vgg):
    sub = run(vgg, tune_steps=0, seed=3)
    model = task_model(vgg, 3, seed=3)
    run_steps(
        model, make_optimizer(model, vgg), tiny.task(), tiny.SPEC, steps=6, batch_size=16, seed=3, device=tiny.CPU
    )
    for name, n in {"fc1.weight": 24, "fc2.weight": 21, "out.weight": 6}.items():
        trained = model.get_parameter(name).detach()
        threshold = trained.abs().flatten().sort(descending=True).values[n - 1]
        assert np.array_equal(sub.element_masks[name], (trained.abs() >= threshold).numpy())
        np.testing.assert_allclose(sub.weights[name], (trained * (trained.abs() >= threshold)).numpy(), rtol=1e-5)


def test_fine_tuning_goes_on_under_the_masks():
    sub = run(method="l0")
    tuned = mvp.finetune(sub, tiny.task(), steps=3, batch_size=16)
    assert not tuned.weights["fc.weight"][~sub.element_masks["fc.weight"]].any()
    assert not np.array_equal(tuned.weights["fc.weight"], sub.weights["fc.weight"])


@pytest.mark.parametrize("method", ["threshold", "l0"])
def test_it_learns_the_task(method):
    assert run(method=method, steps=60, tune_steps=40, keep=0.5, lr=0.01).accuracy > 0.8


# ------------------------------------------------------------------------------------------ learned gates


def test_the_gates_leave_plain_weights_with_their_test_time_values_and_scores_by_gate():
    options = MaskOptions(method="l0", batch_size=16, steps=5)
    own = Classifier(tiny.base(), options, 3, where=tiny.CPU, seed=0, progress=False)
    names = set(own.model.state_dict())
    alive = {"fc.weight": torch.arange(24).view(3, 8) % 3 > 0}
    scores = own.learn(tiny.task(), {"fc.weight": 7}, seed=0, alive=alive)["fc.weight"]
    assert set(own.model.state_dict()) == names and type(own.model.fc) is nn.Linear
    assert torch.equal(scores == -math.inf, ~alive["fc.weight"])
    assert ((scores > 0) & (scores < 1))[alive["fc.weight"]].all()
    assert not own.weight("fc.weight")[~alive["fc.weight"]].any()
    assert isinstance(own.model.fc.weight, nn.Parameter) and own.model.fc.weight.requires_grad
    with torch.no_grad():
        x = tiny.SPEC(tiny.task().test_images)
        features = []
        own.model.fc.register_forward_pre_hook(lambda m, args: features.append(args[0]))
        logits = own.model.eval()(x)
        torch.testing.assert_close(logits, F.linear(features[0], own.model.fc.weight, own.model.fc.bias))


def test_a_strong_penalty_does_not_close_all_gates():
    options = MaskOptions(method="l0", batch_size=16, steps=60, penalty=1e4)
    own = Classifier(tiny.base(), options, 3, where=tiny.CPU, seed=0, progress=False)
    scores = own.learn(tiny.task(), {"fc.weight": 12}, seed=0)["fc.weight"]
    assert 8 < float(scores.sum()) < 16


def test_a_larger_penalty_closes_more_gates():
    means = []
    for penalty in (0.0, 1.0, 100.0):
        options = MaskOptions(method="l0", batch_size=16, steps=30, penalty=penalty)
        own = Classifier(tiny.base(), options, 3, where=tiny.CPU, seed=0, progress=False)
        means.append(float(own.learn(tiny.task(), {"fc.weight": 1}, seed=0)["fc.weight"].mean()))
    assert means[0] > means[1] > means[2]


# ------------------------------------------------------------------------------------------ bad input


def test_every_wrong_option_is_named():
    with pytest.raises(OptionError) as error:
        ClassifierMask(
            method="l1", steps=0, tune_steps=-1, lr=-1, gate_lr=-1, penalty=-1, batch_size=1, weight_decay=-1
        )
    for name in ("method", "steps:", "tune_steps", "lr:", "gate_lr", "penalty", "batch_size", "weight_decay"):
        assert name in str(error.value)
