import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mvp.bases import CIFAR, IMAGENET, create, full_model, load_base, register, skeleton
from mvp.nets import REGISTERED
from mvp.plan import make_plan, prunable
from zoo.errors import BaseMismatchError, DataError, OptionError

INPUT = {"size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def state(tiny_cnn):
    return {k: v.clone() for k, v in full_model(tiny_cnn).state_dict().items()}


def load(weights=None, **options):
    return load_base("tiny_cnn", weights, input=INPUT, **options)


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_registered_base(tiny_names):
    base = load(num_classes=4)
    assert (base.name, base.num_classes, base.input) == ("tiny_cnn", 4, INPUT)
    assert base.plan == make_plan(create("tiny_cnn", 4), (3, 16, 16))
    assert base.weights["fc.weight"].shape == (4, 12) and not any("num_batches" in name for name in base.weights)
    assert load_base("resnet20", input={"size": [3, 16, 16]}, plan={}).num_classes == 100


def test_a_timm_base():
    base = load_base("timm:resnet18", num_classes=3, input={"size": [3, 32, 32]})
    assert len(prunable(base.plan)) == 12 and base.plan["input"] == [3, 32, 32]
    assert base.input == {"size": [3, 32, 32], "mean": list(IMAGENET["mean"]), "std": list(IMAGENET["std"])}
    assert set(full_model(base).state_dict()) == set(timm.create_model("resnet18", num_classes=3).state_dict())


def test_a_torchvision_base():
    base = load_base("torchvision:resnet18", num_classes=3, input={"size": [3, 32, 32]})
    assert len(prunable(base.plan)) == 12 and base.input["mean"] == list(IMAGENET["mean"])
    assert isinstance(full_model(base), torchvision.models.ResNet) and full_model(base).fc.out_features == 3


def test_input_specs_come_from_the_model_else_by_kind_of_name(tiny_names):
    plan = {"made": "before"}
    assert load_base("tiny_cnn", num_classes=3, plan=plan).input == {
        "size": [3, 32, 32], "mean": list(CIFAR["mean"]), "std": list(CIFAR["std"])
    }  # fmt: skip
    assert load_base("torchvision:mobilenet_v3_small", plan=plan).input["size"] == [3, 224, 224]
    own = timm.create_model("vit_tiny_patch16_224").pretrained_cfg
    spec = load_base("timm:vit_tiny_patch16_224", num_classes=3, plan=plan).input
    assert spec == {"size": [3, 224, 224], "mean": list(own["mean"]), "std": list(own["std"])}
    assert spec["mean"] != list(IMAGENET["mean"])
    # What is left out of a given spec is filled in.
    assert load_base("tiny_cnn", num_classes=3, input={"size": [3, 8, 8]}, plan=plan).input["std"] == list(CIFAR["std"])


@pytest.mark.parametrize("spec", [{"sizes": [3, 8, 8]}, {"size": [8, 8]}, {"mean": [0.5]}])
def test_wrong_input_specs(tiny_names, spec):
    with pytest.raises(OptionError, match="input spec"):
        load_base("tiny_cnn", input=spec)


def test_unknown_names_suggest_close_ones():
    for name, expected in (
        ("timm:resnet81", "resnet18"),
        ("torchvision:resnet19", "resnet18"),
        ("resnet21", "resnet20"),
    ):
        with pytest.raises(OptionError, match=expected):
            load_base(name)
    for name in ("", ":", "timm:", "hub:x", "TINY"):
        with pytest.raises(OptionError, match="no base named"):
            load_base(name)


def test_published_weights_that_do_not_exist(tiny_names):
    with pytest.raises(OptionError, match="no published weights"):
        load_base("tiny_cnn", True)
    with pytest.raises(OptionError, match="no published weights for 5 classes"):
        load_base("torchvision:resnet18", True, num_classes=5)


# Weights -------------------------------------------------------------------------------------------------------------


def test_weights_from_every_source_are_the_same_base(tiny_cnn, state, tmp_path):
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "nested.pt")
    torch.save({"model": state}, tmp_path / "model.pth")
    save_file(state, tmp_path / "w.safetensors")
    sources = [state, tiny_cnn.weights, tmp_path / "plain.pth", str(tmp_path / "nested.pt"), tmp_path / "model.pth",
               tmp_path / "w.safetensors"]  # fmt: skip
    for weights in sources:
        base = load(weights, plan=tiny_cnn.plan)
        assert base == tiny_cnn and base.num_classes == 6
        assert all(np.array_equal(base.weights[k], tiny_cnn.weights[k]) for k in tiny_cnn.weights)
    state["stem.weight"].zero_()
    assert load(state, plan=tiny_cnn.plan) != tiny_cnn
    assert load(tmp_path / "plain.pth", plan=tiny_cnn.plan).weights["stem.weight"].any()  # copied, not shared


def test_metadata_of_a_safetensors_file(tiny_cnn, state, tmp_path):
    spec = {"size": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    metadata = {"input": json.dumps(spec), "labels": '["a", "b"]', "accuracy": "0.5", "options": "{}", "format": "pt"}
    save_file(state, tmp_path / "w.safetensors", metadata=metadata)
    base = load_base("tiny_cnn", tmp_path / "w.safetensors")
    assert base.input == spec and base.info == {"labels": ["a", "b"], "accuracy": 0.5, "options": {}}
    assert base == tiny_cnn  # what is known about it is no part of its identity
    other = load_base("tiny_cnn", tmp_path / "w.safetensors", input={"mean": [0, 0, 0]}, plan=base.plan)
    assert other.input == {**spec, "mean": [0, 0, 0]}


def test_the_number_of_classes_is_read_from_the_weights(tiny_names, tiny_cnn):
    for n in (2, 7, 11):
        weights = load(num_classes=n, plan=tiny_cnn.plan).weights
        assert load(weights, plan=tiny_cnn.plan).num_classes == n
    with pytest.raises(BaseMismatchError, match=r"fc\.bias: shape \(6,\), expected \(5,\)"):
        load(tiny_cnn.weights, num_classes=5)


def test_weights_that_do_not_fit_are_all_named(state):
    del state["bn1.bias"]
    state["extra"] = torch.zeros(1)
    state["conv1.weight"] = state["conv1.weight"][:, :2]
    with pytest.raises(BaseMismatchError, match="not tiny_cnn's") as caught:
        load(state)
    assert caught.value.problems == (
        "bn1.bias: missing", "conv1.weight: shape (10, 2, 3, 3), expected (10, 8, 3, 3)", "extra: unexpected",
    )  # fmt: skip


def test_files_that_hold_no_weights(tiny_names, tmp_path):
    with pytest.raises(DataError, match="no weights file"):
        load(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello there, this is no safetensors file")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("text.pth", "empty.pth", "text.safetensors", "module.pth"):
        with pytest.raises(DataError, match="cannot read weights"):
            load(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "dict.pth")
    for name in ("tensor.pth", "dict.pth"):
        with pytest.raises(DataError, match="no state dict"):
            load(tmp_path / name)


def test_random_weights_are_those_of_the_seed(tiny_names, tiny_cnn):
    torch.manual_seed(1)
    base = load(num_classes=6, plan=tiny_cnn.plan)
    after = torch.rand(3)
    torch.manual_seed(2)
    assert load(num_classes=6, plan=tiny_cnn.plan).id == base.id
    assert load(num_classes=6, seed=1, plan=tiny_cnn.plan).id != base.id
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)  # the caller's generator goes on as if nothing was drawn


def test_the_id_is_of_name_classes_and_weights(tiny_names, tiny_cnn, state):
    again = load(state)
    assert again.id == tiny_cnn.id and again.plan == tiny_cnn.plan
    for changes in ({"info": {"accuracy": 1}}, {"input": {}}, {"plan": {"axes": {}}}):
        assert dataclasses.replace(tiny_cnn, **changes).id == tiny_cnn.id
    for name in ("num_batches_tracked", "running_mean", "weight"):
        other = {k: v + 1 if k == f"bn1.{name}" else v for k, v in state.items()}
        assert (load(other, plan=tiny_cnn.plan).id == tiny_cnn.id) == (name == "num_batches_tracked")
    register("tiny_twin", REGISTERED["tiny_cnn"])
    try:
        assert load_base("tiny_twin", state, input=INPUT, plan=tiny_cnn.plan).id != tiny_cnn.id
    finally:
        del REGISTERED["tiny_twin"]


# Modules -------------------------------------------------------------------------------------------------------------


def test_the_full_model_is_the_network_the_weights_came_from(tiny_names, tiny_cnn):
    model = create("tiny_cnn", 6)
    model.train()(X)  # running statistics of its own
    base = load(model.state_dict(), plan=tiny_cnn.plan)
    full = full_model(base)
    with torch.no_grad():
        assert not full.training and torch.equal(full(X), model.eval()(X))
        full.fc.bias.fill_(9)
    assert not (base.weights["fc.bias"] == 9).any() and not (skeleton("tiny_cnn", 6).fc.bias == 9).any()


def test_an_architecture_that_changed_since_raises(tiny_cnn):
    changed = {k: v for k, v in tiny_cnn.weights.items() if k != "bn0.bias"}
    with pytest.raises(BaseMismatchError, match=r"bn0\.bias: missing"):
        full_model(dataclasses.replace(tiny_cnn, weights=changed))


def test_register(tiny_names):
    register("tests-mine", lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)))
    try:
        base = load_base("tests-mine", num_classes=3, input={"size": [3, 2, 2]})
        assert base.weights["1.weight"].shape == (3, 12) and full_model(base)(torch.zeros(1, 3, 2, 2)).shape == (1, 3)
        for name in ("tests-mine", "resnet20", "timm:x", ""):
            with pytest.raises(OptionError, match="cannot register"):
                register(name, lambda num_classes: nn.Linear(1, num_classes))
    finally:
        del REGISTERED["tests-mine"]
