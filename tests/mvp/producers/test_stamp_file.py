import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from mvp.bases import load_base
from mvp.producers.stamp_file import CONFIGS, generator_base, load_generator, task_vector
from mvp.producers.stamp_train import meta_train
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import BaseMismatchError, DataError, OptionError

SHORT = {"splits": 3, "iterations": 4, "tasks": 2, "images": 24, "batch_size": 12, "width": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator of a few iterations over three tasks of three animals each, on W from the tiny base."""
    out = tmp_path_factory.mktemp("stamp") / "generator.safetensors"
    return out, meta_train(tiny.base(), tiny.data(), out, **{**SHORT, "iterations": 8, "tasks": 3, "lr": 0.01})


def read(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def test_small_and_paper():
    small, paper = CONFIGS["small"], CONFIGS["paper"]
    assert (paper.iterations, paper.tasks, paper.images, paper.batch_size) == (2000, 10, 640, 128)
    assert (small.iterations, small.tasks) == (100, 4)
    for options in (small, paper):
        assert (options.lr, options.gate_lr, options.encoder_lr, options.kl) == (1e-3, 1e-2, 1e-3, 15)


def test_the_meta_trained_network_is_a_base_of_its_own(trained):
    out, _ = trained
    base = generator_base(out)
    assert base.num_classes == 10 and base.id != tiny.base().id and base.input == tiny.base().input
    assert read(out)[1]["base"] == base.id == generator_base(out).id
    assert load_base("tests-cnn", out.with_suffix(".base.safetensors")).id == base.id
    assert base.plan["axes"] == tiny.base().plan["axes"]
    with pytest.raises(BaseMismatchError, match=f"{tiny.base().id[:12]}.*{base.id[:12]}"):
        load_generator(out, tiny.base())
    about = read(out)[1]
    assert len(json.loads(about["tasks"])) == 3 and json.loads(about["options"])["started_from"] == tiny.base().id


def test_with_frozen_weights_the_generator_belongs_to_the_base_given(tmp_path):
    out = tmp_path / "g.safetensors"
    meta_train(tiny.base(), tiny.data(), out, **SHORT, frozen=True)
    tensors, about = read(out)
    assert about["base"] == tiny.base().id and not any(k.startswith("network.") for k in tensors)
    assert not out.with_suffix(".base.safetensors").exists()
    generator, options = load_generator(out, tiny.base())
    assert options.frozen and options.width == 16
    fresh = load_generator(out, tiny.base())[0].state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in generator.state_dict().items())
    with pytest.raises(DataError, match="holds no network"):
        generator_base(out)
    with pytest.raises(OptionError, match="frozen weights that are random"):
        meta_train("tests-cnn", tiny.data(), out, **SHORT, frozen=True)


def test_the_encoding_of_a_task_is_its_embedding(trained):
    out, _ = trained
    base = generator_base(out)
    generator, _ = load_generator(out, base)
    data = tiny.task(0, 1, 2)
    one = task_vector(generator, base, data, images=60)
    assert one.shape == (16,) and torch.equal(one, task_vector(generator, base, data, images=60))
    again = task_vector(generator, base, tiny.task(2, 0, 1), images=60)
    torch.testing.assert_close(one, again, rtol=0, atol=1e-5)  # the same images in another order
    other = task_vector(generator, base, tiny.task(7, 8, 9), images=60)
    half = task_vector(generator, base, data, images=30)
    near, far = (float(F.cosine_similarity(one, v, dim=0)) for v in (half, other))
    assert near > far


def test_files_that_are_no_generators(tmp_path, trained):
    with pytest.raises(DataError, match="no mask generator"):
        load_generator(tmp_path / "absent", tiny.base())
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(DataError, match="cannot read"):
        generator_base(tmp_path / "text")
    with pytest.raises(DataError, match="is no mask generator"):
        generator_base(trained[0].with_suffix(".base.safetensors"))
