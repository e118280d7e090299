import logging
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from mvp import simsiam
from mvp.bases import load_base
from mvp.data import Data
from mvp.nets import REGISTERED
from mvp.pretrain import pretrain
from mvp.simsiam import SimSiam, crop, grey, hue_turn, jitter, knn_accuracy, simsiam_step, spread, two_views
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

module = import_module("mvp.pretrain")  # `mvp.pretrain` as an attribute is the function
OPTIONS = {"method": "simsiam", "epochs": 3, "batch_size": 50}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=40):
    return tiny.SPEC(tiny.data().train_images[:n])


def pixels(x):
    return x * 0.25 + 0.5  # the tiny spec's std and mean


def learner(name="tests-cnn"):
    torch.manual_seed(0)
    return SimSiam(REGISTERED[name](10), (8, 8))


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def naive_loss(p1, p2, z1, z2):
    """Eq. 1-4, an image at a time."""

    def distance(p, z):
        return np.mean([-(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) for a, b in zip(p, z)])

    return distance(p1, z2) / 2 + distance(p2, z1) / 2


def test_the_loss_is_the_papers():
    p1, p2, z1, z2 = (torch.randn(7, 5, generator=rng(i), dtype=torch.float64) for i in range(4))
    assert simsiam.loss(p1, p2, z1, z2).item() == pytest.approx(
        naive_loss(p1.numpy(), p2.numpy(), z1.numpy(), z2.numpy())
    )
    assert simsiam.loss(p1, p2, 3 * p2, 0.1 * p1).item() == pytest.approx(-1)
    assert simsiam.loss(p1, p2, -p2, -p1).item() == pytest.approx(1)


def test_no_gradient_flows_through_the_target():
    p1, p2, z1, z2 = (torch.randn(7, 5, generator=rng(i)).requires_grad_() for i in range(4))
    simsiam.loss(p1, p2, z1, z2).backward()
    assert z1.grad is None and z2.grad is None and p1.grad.abs().sum() > 0 and p2.grad.abs().sum() > 0
    # In the network: what reaches the encoder is the gradient with the projections held constant.
    model, views = learner().double().train(), torch.cat([images(), images().flip(3)]).double()
    (a1, b1), (a2, b2) = (model(v) for v in views.chunk(2))
    targets = [a1.detach().clone(), a2.detach().clone()]
    want = torch.autograd.grad(simsiam.loss(b1, b2, *targets), model.model.conv1.weight, retain_graph=True)[0]
    through = -(F.cosine_similarity(b1, a2).mean() + F.cosine_similarity(b2, a1).mean()) / 2
    other = torch.autograd.grad(through, model.model.conv1.weight, retain_graph=True)[0]
    got = torch.autograd.grad(simsiam.loss(b1, b2, a1, a2), model.model.conv1.weight)[0]
    torch.testing.assert_close(got, want)
    assert (got - other).abs().max() > 0.1 * got.abs().max()


def test_the_spread_is_1_for_scattered_outputs_and_0_for_collapsed_ones():
    z = torch.randn(4000, 64, generator=rng())
    assert spread(z).item() == pytest.approx(1, abs=0.02)
    naive = np.mean([(z[:, j] / z.norm(dim=1)).std().item() for j in range(64)]) * 8
    assert spread(z).item() == pytest.approx(naive, rel=1e-4)
    assert spread(torch.ones(50, 64) * torch.rand(50, 1)).item() == pytest.approx(0, abs=1e-4)


def test_the_encoder_is_the_network_without_its_output_layer():
    for name, width in (("tests-cnn", 8), ("tests-vit", 12)):
        torch.manual_seed(0)
        model = REGISTERED[name](10)
        want = next(p for k, p in model.named_parameters() if k.startswith(("fc.", "head."))).clone()
        siam = SimSiam(model, (8, 8)).eval()
        features = siam.model(images(4))
        assert features.shape == (4, width)
        z, p = siam(images(4))
        assert z.shape == p.shape == (4, 32 * width) and siam.width == 32 * width
        back = siam.classifier().eval()
        head = back.get_submodule("fc" if name == "tests-cnn" else "head")
        assert torch.equal(head.weight, want) and head.weight.requires_grad
        torch.testing.assert_close(back(images(4)), head(features))
    linear = [m for m in learner().projector if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [256] * 3 and [
        m.out_features for m in learner().predictor if isinstance(m, nn.Linear)
    ] == [64, 256]
    last = learner().projector[-1]
    assert isinstance(last, nn.BatchNorm1d) and not last.affine


class ConvHead(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, num_classes, 1)

    def forward(self, x):
        return self.out(self.conv(x).relu()).mean((2, 3))


def test_an_output_layer_that_is_no_linear_layer_is_refused():
    with pytest.raises(OptionError, match=r"output layer out \(Conv2d\)"):
        SimSiam(ConvHead(3), (8, 8))


def test_two_views_of_an_image_differ_and_follow_the_seed():
    x, views = images(), two_views(tiny.SPEC)
    one, same, other = views(x, rng(1)), views(x, rng(1)), views(x, rng(2))
    assert one.shape == (80, 3, 8, 8) and torch.equal(one, same) and not torch.equal(one, other)
    first, second = one.chunk(2)
    assert ((first - second).abs().mean((1, 2, 3)) > 0.05).all() and ((first - x).abs().mean((1, 2, 3)) > 0).all()
    assert pixels(one).min() >= -1e-5 and pixels(one).max() <= 1 + 1e-5
    # A view still belongs to its image: most are nearer to their own than to the next one.
    own, next_one = ((first - y).square().mean((1, 2, 3)) for y in (second, second.roll(1, 0)))
    assert (own < next_one).float().mean() > 0.6


def test_crops_are_parts_of_the_image_at_its_size():
    h, w = 32, 32
    ramp = torch.stack(
        [torch.arange(w).float().expand(h, w), torch.arange(h).float()[:, None].expand(h, w), torch.zeros(h, w)]
    )
    n = 200
    draw = torch.rand(5, n, generator=rng())
    out = crop(ramp.expand(n, -1, -1, -1), draw)
    assert out.shape == (n, 3, h, w) and out[:, :2].min() >= 0 and out[:, :2].max() <= 31
    right = out[:, 0, 10, 20] - out[:, 0, 10, 10]  # columns of the image in ten columns of the crop
    down = out[:, 1, 20, 10] - out[:, 1, 10, 10]
    assert ((right < 0) == (draw[4] < 0.5)).all() and (down > 0).all()
    area, aspect = 0.2 + 0.8 * draw[0], (4 / 3) ** (2 * draw[1] - 1)
    inside = (area * aspect < 1) & (area / aspect < 1)
    torch.testing.assert_close((right.abs() * down / 100)[inside], area[inside], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((right.abs() / down)[inside], aspect[inside], rtol=1e-3, atol=1e-3)
    whole = crop(ramp[None], torch.tensor([[1.0], [0.5], [0.3], [0.7], [0.9]]))
    torch.testing.assert_close(whole[0], ramp, rtol=0, atol=1e-4)


def test_colours_change_as_drawn():
    x = 0.2 + 0.6 * torch.rand(1, 3, 6, 6, generator=rng())
    half = torch.full((6, 1), 0.5)  # every factor 1, no turn, not grey

    def with_(**changed):
        draw = half.clone()
        for name, value in changed.items():
            draw[["apply", "bright", "contrast", "saturation", "hue", "grey"].index(name)] = value
        return jitter(x, draw)

    torch.testing.assert_close(with_(), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_(bright=0.75), (1.2 * x).clamp(max=1))
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(with_(contrast=0.25), luma.mean() + 0.8 * (x - luma.mean()))
    torch.testing.assert_close(with_(saturation=0.25), luma[:, None] + 0.8 * (x - luma[:, None]))
    assert torch.equal(with_(apply=0.9, bright=0.1, hue=0.0), x)
    torch.testing.assert_close(with_(grey=0.1), luma[:, None].expand_as(x))
    turned = with_(hue=0.9)
    torch.testing.assert_close(grey(turned), grey(x), rtol=0, atol=1e-3)
    assert (turned - x).abs().max() > 0.01


def test_a_hue_turned_all_the_way_round_is_where_it_was():
    a, b, c = hue_turn(torch.tensor([0.3, 0.7, 1.0])).double()
    torch.testing.assert_close(a @ b, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(c, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (a - torch.eye(3)).abs().max() > 0.3


def test_the_k_nn_is_the_weighted_vote(monkeypatch):
    monkeypatch.setattr(simsiam, "NEIGHBOURS", 7)
    data, encode = tiny.data(), nn.Flatten()
    train, test = (F.normalize(tiny.SPEC(x).flatten(1), dim=1).numpy() for x in (data.train_images, data.test_images))
    right = 0
    for x, y in zip(test, data.test_labels.tolist()):
        similar = train @ x
        votes = np.zeros(10)
        for i in np.argsort(-similar)[:7]:
            votes[data.train_labels[i]] += np.exp(similar[i] / 0.1)
        right += votes.argmax() == y
    got = knn_accuracy(encode, data, tiny.SPEC, device=tiny.CPU)
    assert got == right / len(test) and got > 0.3
    shuffled = Data(
        "noise", data.labels, data.train_images, data.train_labels.roll(1), data.test_images, data.test_labels
    )
    assert knn_accuracy(encode, shuffled, tiny.SPEC, device=tiny.CPU) < 0.3
    seen = []
    knn_accuracy(nn.Sequential(nn.Flatten(), Counting(seen)), data, tiny.SPEC, device=tiny.CPU, most=50)
    assert seen == [50, 40]  # every fourth of 200, every second of 80


class Counting(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(len(x))
        return x


def test_a_step_is_one_on_the_loss_of_both_views():
    model, views = learner().train(), two_views(tiny.SPEC)(images(), rng())
    other = learner().train()
    (z1, p1), (z2, p2) = other(views[:40]), other(views[40:])
    want = simsiam.loss(p1, p2, z1, z2)
    want.backward()
    value, wide = simsiam_step(model, torch.optim.SGD(model.parameters(), lr=0.1), views)
    assert value.item() == pytest.approx(want.item(), abs=1e-6) and wide.item() == pytest.approx(
        spread(z1).item(), abs=1e-6
    )
    for (k, p), q in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(p, q - 0.1 * (0 if q.grad is None else q.grad), msg=k)
    assert not any(p.requires_grad for k, p in model.named_parameters() if k.startswith("head."))


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [2, 4, 9])  # 4 steps an epoch: in the first, at the end of it, in the last
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(after, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    accuracy = pretrain("tests-dropout", tiny.data(), whole, **OPTIONS)
    left = [after]

    def dying(*args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return simsiam_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "simsiam_step", dying)
        with pytest.raises(Killed):
            pretrain("tests-dropout", tiny.data(), killed, **OPTIONS)
    assert killed.with_suffix(".ckpt").exists() == (after >= 4) and not killed.exists()
    torch.manual_seed(after)
    assert pretrain("tests-dropout", tiny.data(), killed, **OPTIONS) == accuracy
    a, b = tensors(whole), tensors(killed)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_file_is_a_base_whose_head_is_untrained_and_whose_number_is_the_k_nns(tmp_path):
    out, before = tmp_path / "base.safetensors", torch.get_rng_state()
    top1 = pretrain("tests-cnn", tiny.data(), out, **OPTIONS, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    base = load_base("tests-cnn", out)
    assert base.num_classes == 10 and base.info["labels"] == list(tiny.LABELS)
    assert base.info["knn_accuracy"] == pytest.approx(top1, abs=1e-4) and "accuracy" not in base.info
    assert base.info["options"]["method"] == "simsiam" and base.info["options"]["lr"] == 0.03 * 50 / 256
    with torch.random.fork_rng():
        torch.manual_seed(3)
        start = REGISTERED["tests-cnn"](10).state_dict()
    assert np.array_equal(base.weights["fc.weight"], start["fc.weight"].numpy())
    assert not np.array_equal(base.weights["conv1.weight"], start["conv1.weight"].numpy())
    with pytest.raises(OptionError, match="other options"):
        pretrain("tests-cnn", tiny.data(), out, **{**OPTIONS, "method": "supervised"}, seed=3)


def noisy(n=40):
    """Ten faint patterns under strong noise, which raw or random features hardly tell apart."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(88, 168, (10, 3, 2, 2)).repeat(4, axis=2).repeat(4, axis=3)

    def split(k):
        labels = draw.permutation(np.arange(10).repeat(k))
        made = np.clip(patterns[labels] + draw.normal(0, 60, (len(labels), 3, 8, 8)), 0, 255).astype(np.uint8)
        return torch.from_numpy(made), torch.from_numpy(labels)

    return Data("noisy", tiny.LABELS, *split(n), *split(20))


def test_it_learns_without_labels(tmp_path):
    data = noisy()
    out = tmp_path / "base.safetensors"
    trained = pretrain("tests-cnn", data, out, method="simsiam", epochs=30, batch_size=40, lr=0.1)
    torch.manual_seed(0)
    untrained = SimSiam(REGISTERED["tests-cnn"](10), (8, 8))
    before = knn_accuracy(untrained.model, data, module._spec(data), device=tiny.CPU)
    assert trained > before + 0.05


def test_a_collapse_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    pretrain("tests-cnn", tiny.data(), tmp_path / "a.safetensors", method="simsiam", epochs=1, batch_size=50)
    healthy = caplog.text
    assert "spread" in healthy and "k-NN" in healthy and "collapsed" not in healthy
    monkeypatch.setattr(module, "simsiam_step", lambda *args: (torch.tensor(-1.0), torch.tensor(0.01)))
    pretrain("tests-cnn", tiny.data(), tmp_path / "b.safetensors", method="simsiam", epochs=1, batch_size=50)
    assert "collapsed" in caplog.text


@pytest.mark.parametrize("options", [{"method": "nonsense"}, {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}])
def test_options_out_of_range(options, tmp_path):
    with pytest.raises(OptionError, match=f"{next(iter(options))}"):
        pretrain("tests-cnn", tiny.data(), tmp_path / "b.safetensors", **{**OPTIONS, **options})
    assert not list(tmp_path.iterdir())
