import json
from importlib import import_module

import pytest
import torch
from safetensors import safe_open

from mvp.bases import load_base
from mvp.pretrain import pretrain
from mvp.train import step
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

module = import_module("mvp.pretrain")  # `mvp.pretrain` as an attribute is the function
OPTIONS = {"epochs": 3, "batch_size": 32, "lr": 0.05}


class Killed(Exception):
    pass


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def interrupted(out, after, monkeypatch, name="tests-dropout", **options):
    """A run that dies after so many steps."""
    left = [after]

    def dying(*args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "step", dying)
        with pytest.raises(Killed):
            pretrain(name, tiny.data(), out, **OPTIONS, **options)


@pytest.mark.parametrize("after", [3, 7, 10, 15])  # 7 steps an epoch: in the first, at the end of it, in the others
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(after, tmp_path, monkeypatch):
    whole = pretrain("tests-dropout", tiny.data(), tmp_path / "whole.safetensors", **OPTIONS)
    interrupted(tmp_path / "killed.safetensors", after, monkeypatch)
    assert not (tmp_path / "killed.safetensors").exists()
    assert (tmp_path / "killed.ckpt").exists() == (after >= 7)
    torch.manual_seed(after)
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "step", lambda *args: steps.append(1) or step(*args))
        resumed = pretrain("tests-dropout", tiny.data(), tmp_path / "killed.safetensors", **OPTIONS)
    assert resumed == whole and len(steps) == 21 - after // 7 * 7
    a, b = tensors(tmp_path / "whole.safetensors"), tensors(tmp_path / "killed.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    out = tmp_path / "base.safetensors"
    first = pretrain("tests-cnn", tiny.data(), out, **OPTIONS)
    weights = tensors(out)
    monkeypatch.setattr(module, "step", None)
    assert pretrain("tests-cnn", tiny.data(), out, **OPTIONS) == first
    assert all(torch.equal(v, weights[k]) for k, v in tensors(out).items())


@pytest.mark.parametrize("changed", [{"lr": 0.01}, {"epochs": 4}, {"seed": 1}, {"weight_decay": 0.0}])
def test_a_checkpoint_of_other_options_is_refused(changed, tmp_path, monkeypatch):
    out = tmp_path / "base.safetensors"
    interrupted(out, 10, monkeypatch)
    with pytest.raises(OptionError, match="other options") as error:
        pretrain("tests-dropout", tiny.data(), out, **{**OPTIONS, **changed})
    assert "base.ckpt" in str(error.value) and "Delete it" in str(error.value)


def test_the_file_is_a_base_with_its_input_labels_and_accuracy(tmp_path):
    out = tmp_path / "new" / "folder" / "base.safetensors"
    data = tiny.data()
    top1 = pretrain("tests-cnn", data, out, **OPTIONS, seed=3)
    base = load_base("tests-cnn", out)
    assert base.num_classes == 10
    pixels = data.train_images.double() / 255
    assert base.input["size"] == [3, 8, 8]
    assert base.input["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert base.input["std"] == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-4)
    assert base.info["labels"] == list(data.labels)
    assert base.info["accuracy"] == pytest.approx(top1, abs=1e-4)
    assert base.info["options"] == {
        "base": "tests-cnn", "dataset": "animals", "classes": 10, "images": 200, "epochs": 3, "lr": 0.05,
        "batch_size": 32, "weight_decay": 5e-4, "seed": 3,
    }  # fmt: skip
    assert json.dumps(base.info)


def test_it_learns(tmp_path):
    assert pretrain("tests-cnn", tiny.data(), tmp_path / "b.safetensors", epochs=12, batch_size=32, lr=0.1) > 0.5


def test_the_seed_decides_everything_and_torchs_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    for i, seed in enumerate((1, 1, 2)):
        pretrain("tests-dropout", tiny.data(), tmp_path / f"{i}.safetensors", epochs=1, batch_size=64, seed=seed)
        if i == 0:
            assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1234)
    a, b, c = (tensors(tmp_path / f"{i}.safetensors")["conv1.weight"] for i in range(3))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"name": "nonsense"}])
def test_options_out_of_range(options, tmp_path):
    name = options.pop("name", "tests-cnn")
    with pytest.raises(OptionError):
        pretrain(name, tiny.data(), tmp_path / "b.safetensors", **options)
    assert not list(tmp_path.iterdir())
