import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvp.bases import full_model, register
from mvp.nets import REGISTERED
from mvp.producers import prune
from mvp.producers.snip import SNIP, scored_weights, sensitivity, top_weights, variance_scaling
from mvp.reinit import reinitialised
from mvp.subnetwork import task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError, OptionError

CONVS = ["conv1.weight", "conv2.weight", "conv3.weight"]


def setting(name="cnn"):
    """The task's model in double precision, its competing weights, and a batch that is no multiple of a chunk."""
    model = task_model(tiny.base(name), 3).double()
    data = tiny.task()
    x, y = tiny.SPEC(data.train_images).double().repeat(3, 1, 1, 1)[:150], data.train_labels.repeat(3)[:150]
    return model, scored_weights(model, tiny.base(name).plan), x, y


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_sensitivity_is_weight_times_gradient_of_the_unmasked_loss(name):
    model, names, x, y = setting(name)
    got = sensitivity(model, names, x, y)
    model.zero_grad()
    F.cross_entropy(model.eval()(x), y).backward()
    assert list(got) == names and len(names) == (3 if name == "cnn" else 9)
    for k in names:
        weight = model.get_parameter(k)
        torch.testing.assert_close(got[k], (weight * weight.grad).abs().detach(), rtol=1e-9, atol=1e-15)


def test_sensitivity_is_the_slope_of_the_loss_over_an_indicator_on_one_weight():
    model, names, x, y = setting()
    got, rng, h = sensitivity(model, names, x, y), np.random.default_rng(0), 1e-5
    for k in names:
        weight = model.get_parameter(k)
        for i in rng.choice(weight.numel(), 4, replace=False):
            losses = []
            for c in (1 + h, 1 - h):
                indicator = torch.ones_like(weight).view(-1)
                indicator[i] = c
                changed = {k: (weight * indicator.view(weight.shape)).detach()}
                losses.append(F.cross_entropy(torch.func.functional_call(model, changed, (x,)), y).item())
            slope = abs(losses[0] - losses[1]) / (2 * h)
            assert got[k].view(-1)[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_the_count_is_exact_and_global():
    rng = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(7, 5, generator=rng), "b": 10 + torch.rand(13, generator=rng), "c": torch.rand(4, 4)}
    for keep in (0.01, 0.2, 0.333, 0.5, 1.0):
        masks, n = top_weights(scores, keep), max(1, round(keep * 64))
        assert sum(int(m.sum()) for m in masks.values()) == n
        assert int(masks["b"].sum()) == min(
            13, n
        )  # the largest are all in one layer, and no layer has a share of its own
        lowest = min(scores[k][m].min() for k, m in masks.items() if m.any())
        assert all((scores[k][~m] <= lowest).all() for k, m in masks.items())
    equal = top_weights({"a": torch.ones(3), "b": torch.ones(2, 2)}, 4 / 7)
    assert equal["a"].tolist() == [True] * 3 and equal["b"].tolist() == [[True, False], [False, False]]


def test_the_scale_of_the_loss_does_not_matter():
    model, names, x, y = setting()
    scores = sensitivity(model, names, x, y)
    one, other = (top_weights({k: f * s for k, s in scores.items()}, 0.3) for f in (1.0, 1e-4))
    assert all(torch.equal(one[k], other[k]) for k in names)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_run_keeps_the_most_sensitive_weights_of_its_batch_and_nothing_revives_the_others(name):
    sub = prune(tiny.base(name), tiny.task(), producer="snip", keep=0.25, images=1000, steps=4, batch_size=16, lr=0.01)
    data, model = tiny.task(), task_model(tiny.base(name), 3)
    names = scored_weights(model, tiny.base(name).plan)
    want = top_weights(sensitivity(model, names, tiny.SPEC(data.train_images), data.train_labels), 0.25)
    assert sub.element_masks.keys() == want.keys() == set(names)
    for k, mask in want.items():
        assert np.mean(sub.element_masks[k] == mask.numpy()) > 0.99  # the order of the images decides the last bit
        assert not sub.weights[k][~sub.element_masks[k]].any() and sub.weights[k][sub.element_masks[k]].all()
    m = sum(mask.numel() for mask in want.values())
    assert sum(int(v.sum()) for v in sub.element_masks.values()) == round(0.25 * m)
    assert sub.metrics["kept_weights"] == sub.params - (m - round(0.25 * m))
    assert (sub.metrics["steps"], sub.kind, sub.init) == (4, "element", "pretrained")


def test_more_sensitive_weights_matter_more_than_others():
    model, names, x, y = setting()
    with torch.no_grad():
        before = F.cross_entropy(model.eval()(x), y)
    scores, losses = sensitivity(model, names, x, y), []
    for sign in (1, -1):
        masks = top_weights({k: sign * s for k, s in scores.items()}, 0.7)
        cut = {k: model.get_parameter(k).detach() * m for k, m in masks.items()}
        losses.append(abs(F.cross_entropy(torch.func.functional_call(model, cut, (x,)), y) - before).item())
    assert losses[0] < losses[1] / 2


@pytest.mark.parametrize("init", ["pretrained", "reinit"])
def test_it_learns_the_task(init):
    sub = prune(tiny.base(), tiny.task(), producer="snip", keep=0.3, steps=40, batch_size=20, lr=0.05, init=init)
    assert sub.accuracy > 0.85 and sub.init == init


def test_fresh_weights_have_the_variance_of_their_fan_in():
    model = nn.Sequential(nn.Conv2d(16, 60, 5), nn.Linear(900, 200))
    variance_scaling(model, ["0.weight", "1.weight"], seed=0)
    for weight, fan_in in ((model[0].weight, 400), (model[1].weight, 900)):
        assert weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
        assert weight.abs().max() <= 2 / 0.8796 * fan_in**-0.5 and abs(weight.mean()) < 0.02 * fan_in**-0.5
    sub = prune(tiny.base(), tiny.task(), producer="snip", keep=1.0, steps=0, init="reinit")
    again = prune(tiny.base(), tiny.task(), producer="snip", keep=1.0, steps=0, init="reinit", seed=1)
    assert not np.array_equal(sub.weights["conv1.weight"], again.weights["conv1.weight"])
    fresh = reinitialised(tiny.base(), seed=0).weights
    assert np.array_equal(
        sub.weights["bn1.bias"], fresh["bn1.bias"]
    )  # what is not scored starts as the architecture does
    assert not np.array_equal(sub.weights["conv1.weight"], fresh["conv1.weight"])


def test_which_weights_compete():
    resnet = REGISTERED["resnet20"](10)
    names = scored_weights(resnet, {"head": ["fc.weight", "fc.bias"]})
    assert len(names) == 21 and "fc.weight" not in names and "layer2.0.downsample.0.weight" in names
    without = scored_weights(resnet, {"head": ["fc.weight", "fc.bias"]}, keep_1x1=True)
    assert set(names) - set(without) == {"layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"}
    assert scored_weights(full_model(tiny.base()), tiny.base().plan) == CONVS


def test_the_mini_batch_is_drawn_by_seed_and_task():
    def masks(seed=0, **options):
        return prune(tiny.base(), tiny.task(), producer="snip", keep=0.3, steps=0, seed=seed, **options).element_masks

    one, same, other = masks(images=6), masks(images=6), masks(images=60)
    assert all(np.array_equal(one[k], same[k]) for k in CONVS)
    assert any(not np.array_equal(one[k], other[k]) for k in CONVS)


class HeadOnly(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


def test_a_base_that_is_all_head():
    from mvp.bases import load_base

    register("tests-head-only", HeadOnly)
    try:
        base = load_base("tests-head-only", num_classes=10, input=tiny.INPUT)
        with pytest.raises(OptionError, match="snip: tests-head-only has no weights"):
            prune(base, tiny.task(), producer="snip", keep=0.3)
    finally:
        del REGISTERED["tests-head-only"]


def test_bad_options_and_data():
    for options in ({"images": 0}, {"steps": -1}, {"init": "new"}, {"lr": -1}, {"keep_1x1": 1}, {"weight_decay": -1}):
        with pytest.raises(OptionError, match=next(iter(options))):
            SNIP(**options)
    d = tiny.task()
    one = type(d)("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few images"):
        prune(tiny.base(), one, producer="snip", keep=0.3)
