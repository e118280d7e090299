"""What every producer owes the zoo, whatever its method. A new producer: add tiny options for it to TINY."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import mvp
import zoo
from mvp.plan import prunable
from mvp.producers import Producer, producers, prune, resolve
from mvp.subnetwork import cost, task_model
from mvp.surgery import masked, scatter
from mvp.train import accuracy
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

# Options that make a run on the tiny data take well under a second; {} where the defaults do.
TINY = {"ifp": {"steps": 8, "prune_every": 1, "prune_share": 0.5, "batch_size": 16}, "random": {}}

everyone = pytest.mark.parametrize("name", sorted(producers()))
on_each_base = pytest.mark.parametrize("base", ["cnn", "vit"])


@pytest.fixture(scope="module")
def run():
    """Prunes; equal runs are made once."""
    made = {}

    def run(name, base, keep=0.3, seed=0):
        key = (name, base, keep, seed)
        if key not in made:
            made[key] = prune(tiny.base(base), tiny.task(), producer=name, keep=keep, seed=seed, **TINY[name])
        return made[key]

    return run


def test_the_projects_own_producers_are_installed():
    assert {"ifp", "random"} <= set(producers())


@everyone
def test_there_are_tests_and_tiny_options_of_it(name):
    assert name in TINY
    assert (Path(__file__).parents[1] / "mvp" / "producers" / f"test_{name}.py").is_file()


@everyone
def test_it_says_what_it_is(name):
    member = resolve(name)
    assert isinstance(member, Producer) and member.name == name
    assert all(isinstance(v, str) and v.strip() for v in (member.paper, member.needs))
    assert set(member.kind.split("+")) <= {"filter", "node", "head", "element"}


@everyone
@on_each_base
def test_its_record_can_be_stored_and_read_back(name, base, run, tmp_path):
    sub = run(name, base)
    assert (sub.producer, sub.keep, sub.seed, sub.generation) == (name, 0.3, 0, 0)
    assert sub.task == tiny.task().task and sub.base == tiny.base(base)
    z = zoo.open(tmp_path / "z")
    key = z.add(sub)
    again = z.get(key)
    assert again == sub and again.metrics == sub.metrics and again.options == sub.options
    assert again.channels.keys() == sub.channels.keys()
    assert all(np.array_equal(again.channels[k], sub.channels[k]) for k in sub.channels)
    assert all(np.array_equal(again.weights[k], sub.weights[k]) for k in sub.weights)
    assert torch.equal(mvp.build(again)(torch.ones(1, 3, 8, 8)), mvp.build(sub)(torch.ones(1, 3, 8, 8)))


@everyone
@on_each_base
@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_it_keeps_the_asked_share_of_every_axis(name, base, keep, run):
    sub, plan = run(name, base, keep), tiny.base(base).plan
    if sub.kind != "structured":
        pytest.skip("does not remove whole channels")
    got = {axis: len(kept) for axis, kept in sub.channels.items()}
    assert got == {axis: max(1, round(keep * plan["axes"][axis]["n"])) for axis in prunable(plan)}
    assert (sub.params, sub.macs) == cost(sub.base, sub.channels, 3)


@everyone
@on_each_base
def test_a_seed_decides_everything(name, base, run):
    sub = run(name, base)
    again = prune(tiny.base(base), tiny.task(), producer=name, keep=0.3, seed=0, **TINY[name])
    assert again.id == sub.id and again.accuracy == sub.accuracy
    assert run(name, base, seed=1).weights_digest != sub.weights_digest


@everyone
def test_torchs_own_random_numbers_decide_nothing_and_go_on_as_if_nothing_had_been(name, run):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    noisy = [prune(tiny.base("dropout"), tiny.task(), producer=name, keep=0.3, **TINY[name]) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert noisy[0].id == noisy[1].id


@everyone
@on_each_base
def test_the_built_model_is_slim_and_equals_the_masked_full_one(name, base, run):
    sub = run(name, base)
    model, x = mvp.build(sub), tiny.SPEC(tiny.task().test_images)
    assert not model.training and model(x).shape == (len(x), 3)
    if (sub.kind, sub.mode) != ("structured", "coupled"):
        pytest.skip("not physically slim")
    assert sum(p.numel() for p in model.parameters()) == sub.params
    slim = {k: torch.from_numpy(np.array(v)) for k, v in sub.weights.items()}
    full = task_model(sub.base, 3).eval()
    full.load_state_dict(scatter(slim, sub.base.plan, sub.channels, full.state_dict()))
    with torch.no_grad():
        expected = masked(full, sub.base.plan, sub.channels)(x)
        assert (full(x) - expected).abs().max() > 1e-3
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@everyone
@on_each_base
def test_its_accuracy_is_that_of_the_built_model(name, base, run):
    sub, data = run(name, base), tiny.task()
    measured = accuracy(mvp.build(sub), data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU)
    assert sub.accuracy == measured


@everyone
def test_its_options_are_recorded_as_used(name, run):
    assert dict(run(name, "cnn").options) == json.loads(json.dumps(asdict(resolve(name, **TINY[name]))))


@everyone
@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range(name, keep):
    with pytest.raises(OptionError, match="keep"):
        prune(tiny.base(), tiny.task(), producer=name, keep=keep)
    with pytest.raises(OptionError, match="keep"):
        resolve(name).prune(tiny.base(), tiny.task(), keep=keep)


@everyone
def test_many_tasks_give_a_list_in_their_order(name, run):
    other = tiny.task(4, 3)
    subs = prune(tiny.base(), [other, tiny.task()], producer=name, keep=0.3, **TINY[name])
    assert [s.task for s in subs] == [other.task, tiny.task().task]
    assert subs[1].id == run(name, "cnn").id


@everyone
def test_unknown_options(name):
    with pytest.raises(OptionError, match="no option nonsense"):
        resolve(name, nonsense=1)
    with pytest.raises(OptionError, match="beside a producer instance"):
        resolve(resolve(name), steps=1)


def test_by_name_class_or_instance():
    assert resolve("ifp", steps=7) == resolve(producers()["ifp"], steps=7) == resolve(producers()["ifp"](steps=7))
    with pytest.raises(OptionError, match="no producer 'nonsense'") as error:
        resolve("nonsense")
    assert "ifp" in str(error.value) and "random" in str(error.value)


def test_two_distributions_with_one_name(monkeypatch):
    from importlib.metadata import EntryPoint

    twice = [EntryPoint("ifp", f"mvp.producers.{m}", "zoo.producers") for m in ("ifp:IFP", "random:RandomChannels")]
    monkeypatch.setattr(sys.modules["mvp.producers"], "entry_points", lambda group: twice)
    with pytest.raises(OptionError, match="two producers are called 'ifp'"):
        producers()
