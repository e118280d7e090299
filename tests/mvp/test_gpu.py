from importlib import import_module

import numpy as np
import pytest
import torch

import mvp
import zoo
from mvp.bases import full_model
from mvp.finetune import finetune
from mvp.populate import populate
from mvp.producers import prune
from mvp.score import score
from mvp.train import accuracy, outputs, place
from tests import tiny
from tests.tiny import registered  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TASKS = [("dog", "cat", "horse"), ("lion", "tiger", "wolf"), ("fox", "bear", "dog"), ("goat", "sheep", "lion")]
IFP = {"steps": 6, "prune_every": 1, "prune_share": 0.3, "batch_size": 16}


def equal_channels(a, b):
    same = [np.array_equal(a.channels[k], b.channels[k]) for k in a.channels]
    return a.channels.keys() == b.channels.keys() and all(same)


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize("mode", ["coupled", "independent"])
def test_equal_importance_gives_equal_channels(mode, importance, monkeypatch):
    subs = []
    for device in ("cpu", "cuda"):
        rng = np.random.default_rng(0)

        def measure(model, plan, axes, *_, rng=rng, device=device):
            assert next(model.parameters()).device.type == device
            return {
                a: {w["layer"]: torch.from_numpy(rng.random(plan["axes"][a]["n"])).to(device)
                    for w in plan["axes"][a]["writers"]}
                for a in axes
            }  # fmt: skip

        monkeypatch.setattr(import_module("mvp.producers.ifp"), f"_{importance}", measure)
        options = {**IFP, "mode": mode, "importance": importance}
        subs.append(prune(tiny.base(), tiny.task(), keep=0.3, seed=2, device=device, **options))
    assert equal_channels(*subs)


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_measured_importance_agrees_but_for_rounding(name, importance):
    options = {"steps": 1, "prune_every": 1, "prune_share": 0.5, "importance": importance}
    cpu, cuda = (prune(tiny.base(name), tiny.task(), keep=0.5, device=d, **options) for d in ("cpu", "cuda"))
    overlaps = [zoo.iou(cpu.channels[a], cuda.channels[a]) for a in cpu.channels]
    assert np.mean(overlaps) > 0.8


def test_random_channels_and_votes_do_not_depend_on_the_device():
    subs = [prune(tiny.base(), tiny.task(), producer="random", keep=0.5, device=d) for d in ("cpu", "cuda")]
    assert subs[0].id == subs[1].id


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_fine_tuning_learns_on_the_gpu(name):
    sub, data = prune(tiny.base(name), tiny.task(), producer="random", keep=0.5), tiny.task()
    trained = finetune(sub, data, steps=60, batch_size=20, lr=0.05 if name == "cnn" else 3e-3, device="cuda")
    assert trained.accuracy > 0.8 and equal_channels(sub, trained)
    model = place(mvp.build(trained), tiny.CPU)
    on_cpu = accuracy(model, data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU)
    assert on_cpu == pytest.approx(trained.accuracy, abs=0.1)  # bf16 autocast moves a few images over the border


def test_outputs_agree_within_bf16():
    images, model = tiny.data().test_images, full_model(tiny.base())
    cpu = outputs(model, images, tiny.SPEC, device=tiny.CPU)
    cuda = outputs(place(model, torch.device("cuda")), images, tiny.SPEC, device=torch.device("cuda"))
    assert (cpu - cuda).abs().max() < 0.05 * cpu.abs().max()


def test_scores_agree_within_bf16(tmp_path):
    values = []
    for device in ("cpu", "cuda"):
        z = zoo.open(tmp_path / device)
        ids = populate(z, tiny.base(), tiny.data(), TASKS, producer="random", keep=0.5, device=device)
        assert score(z, tiny.task("wolf", "fox", "goat"), device=device) == len(TASKS)
        rows = z.sql("select source, target, value from scores where measure = 'leep'").fetchall()
        values.append({(source, target): value for source, target, value in rows})
        assert len(ids) == len(TASKS)
    assert values[0].keys() == values[1].keys()
    assert all(values[0][k] == pytest.approx(values[1][k], abs=0.02) for k in values[0])
