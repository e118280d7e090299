"""What every producer owes the zoo, whatever its method. A new producer: add tiny options for it to TINY."""

import dataclasses
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mvp
import zoo
from mvp.cli import main
from mvp.plan import prunable
from mvp.populate import populate
from mvp.producers import Producer, needs_sources, producers, prune, recorded, resolve
from mvp.subnetwork import cost, task_model
from mvp.surgery import masked, scatter
from mvp.train import accuracy
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import OptionError

# Options that make a run on the tiny data take well under a second; {} where the defaults do.
TINY = {
    "ifp": {"steps": 8, "prune_every": 1, "prune_share": 0.5, "batch_size": 16},
    "ahnp": {"steps": 6, "finetune_steps": 2, "prune_every": 1, "batch_size": 16},
    "random": {},
    "norm": {"prune_share": 0.4, "every_epochs": 1, "batch_size": 16},
    "intersection": {"prune_share": 0.4, "every_epochs": 1, "tune_epochs": 1, "batch_size": 16},
    "meta_norm": {"prune_share": 0.4, "every_epochs": 1, "tune_epochs": 1, "batch_size": 16, "n_tasks": 2},
    "classifier_mask": {"steps": 4, "tune_steps": 2, "batch_size": 16},
    "classifier_mask_sources": {"steps": 4, "tune_steps": 2, "batch_size": 16},
    "snip": {"images": 12, "steps": 4, "batch_size": 16},
    "bbdropout": {"steps": 6, "finetune_steps": 2, "batch_size": 16},
    "random_structure": {},
    "stamp": {"prune_steps": 3, "finetune_steps": 2, "set_images": 12, "batch_size": 16},
    "lcp": {"pool": 4, "iterations": 6, "tune_steps": 3, "finetune_steps": 3, "batch_size": 16, "floor": 0.0},
}
MEMBERS = producers()
# What the tiny bases have: a producer runs on a base when it removes something that the base has.
UNITS = {"cnn": {"filter", "element"}, "vit": {"node", "head", "element"}}


def bases_of(name):
    return [base for base, has in UNITS.items() if has & set(MEMBERS[name].kind.split("+"))]


everyone = pytest.mark.parametrize("name", sorted(MEMBERS))
on_each_base = pytest.mark.parametrize(
    ("name", "base"), [(name, base) for name in sorted(MEMBERS) for base in bases_of(name)]
)


def options_of(name, base="cnn"):
    """Those of TINY; STAMP needs a file too, meta-trained for the base."""
    return TINY[name] | ({"generator": tiny.generator("cnn" if base == "vit" else base)} if name == "stamp" else {})


def tiny_prune(name, base, data=None, *, keep=0.3, seed=0):
    """One run with the options of TINY, and with source tasks where the producer needs them."""
    sources = [tiny.task(5, 6, 7), tiny.task(7, 8, 9)] if needs_sources(MEMBERS[name]) else []
    data = data or tiny.task()
    options = options_of(name, base)
    return prune(tiny.base(base), data, producer=name, keep=keep, seed=seed, sources=sources, **options)


@pytest.fixture(scope="module")
def run():
    """Prunes; equal runs are made once."""
    made = {}

    def run(name, base, keep=0.3, seed=0):
        key = (name, base, keep, seed)
        if key not in made:
            made[key] = tiny_prune(name, base, keep=keep, seed=seed)
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
    assert all(isinstance(v, str) and v.strip() for v in (member.paper, member.needs, member.claim))
    assert set(member.kind.split("+")) <= {"filter", "node", "head", "element"}
    assert member.widths in ("equal", "budget", "learned", "full")


@everyone
def test_its_options_can_stand_beside_the_arguments_of_prune_and_populate(name):
    taken = {*inspect.signature(prune).parameters, *inspect.signature(populate).parameters} - {"options"}
    assert not taken & {field.name for field in dataclasses.fields(MEMBERS[name])}


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


@on_each_base
@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_it_keeps_what_keep_means_for_it(name, base, keep, run):
    sub, plan = run(name, base, keep), tiny.base(base).plan
    got = {axis: len(kept) for axis, kept in sub.channels.items()}
    equal = {axis: max(1, round(keep * plan["axes"][axis]["n"])) for axis in prunable(plan)}
    widths = MEMBERS[name].widths
    if widths == "equal":
        assert got == equal
    if widths == "budget":
        limit = cost(sub.base, {axis: range(n) for axis, n in equal.items()}, 3)[1]
        assert sub.macs <= limit
        for axis, n in got.items():
            if n < plan["axes"][axis]["n"]:
                wider = {a: range(k + (a == axis)) for a, k in got.items()}
                assert cost(sub.base, wider, 3)[1] > limit
    if widths == "full":
        assert sub.kind == "element" and not sub.channels
    assert (sub.params, sub.macs) == cost(sub.base, sub.channels, 3)


@on_each_base
def test_a_seed_decides_everything(name, base, run):
    sub = run(name, base)
    again = tiny_prune(name, base)
    assert again.id == sub.id and again.accuracy == sub.accuracy
    assert run(name, base, seed=1).weights_digest != sub.weights_digest


@everyone
def test_torchs_own_random_numbers_decide_nothing_and_go_on_as_if_nothing_had_been(name, run):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    base = "dropout" if "cnn" in bases_of(name) else "vit"
    noisy = [tiny_prune(name, base) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert noisy[0].id == noisy[1].id


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


@on_each_base
def test_its_accuracy_is_that_of_the_built_model(name, base, run):
    sub, data = run(name, base), tiny.task()
    measured = accuracy(mvp.build(sub), data.test_images, data.test_labels, tiny.SPEC, device=tiny.CPU)
    assert sub.accuracy == measured


@everyone
def test_its_options_are_recorded_as_used(name, run):
    sub = run(name, bases_of(name)[0])
    options = {k: v for k, v in sub.options.items() if k != "sources"}
    assert options == recorded(resolve(name, **options_of(name)))
    assert len(sub.options.get("sources", [])) == (2 if needs_sources(MEMBERS[name]) else 0)


@everyone
def test_source_tasks_are_asked_for_where_they_are_needed_and_refused_elsewhere(name):
    base, sources = tiny.base(bases_of(name)[0]), [] if needs_sources(MEMBERS[name]) else [tiny.task(5, 6, 7)]
    with pytest.raises(OptionError, match="source tasks"):
        prune(base, tiny.task(), producer=name, sources=sources, **options_of(name))


@everyone
@pytest.mark.parametrize("base", ["cnn", "vit"])
def test_a_base_without_anything_it_could_remove(name, base):
    if base in bases_of(name):
        pytest.skip("it runs there")
    with pytest.raises(OptionError, match=name):
        tiny_prune(name, base)


@everyone
@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range(name, keep):
    with pytest.raises(OptionError, match="keep"):
        tiny_prune(name, bases_of(name)[0], keep=keep)
    member = resolve(name, **options_of(name))
    more = {"sources": [tiny.task(5, 6, 7)]} if needs_sources(member) else {}
    with pytest.raises(OptionError, match="keep"):
        member.prune(tiny.base(bases_of(name)[0]), tiny.task(), keep=keep, **more)


@everyone
def test_many_tasks_give_a_list_in_their_order(name, run):
    other, base = tiny.task(4, 3, 5), bases_of(name)[0]
    subs = tiny_prune(name, base, [other, tiny.task()])
    assert [s.task for s in subs] == [other.task, tiny.task().task]
    assert subs[1].id == run(name, base).id


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


def test_a_broken_producer_of_another_package_stops_nobody_else(monkeypatch):
    from importlib.metadata import EntryPoint

    group = [
        EntryPoint(n, v, "zoo.producers") for n, v in (("bad", "no_such_package:X"), ("ifp", "mvp.producers.ifp:IFP"))
    ]
    monkeypatch.setattr(sys.modules["mvp.producers"], "entry_points", lambda **_: group)
    assert resolve("ifp").name == "ifp"
    with pytest.raises(ImportError):
        resolve("bad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny data as an image folder."""
    root, data = tmp_path_factory.mktemp("images") / "animals", tiny.data()
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (root / split / data.labels[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / split / data.labels[label] / f"{i}.png")
    return root


@everyone
@pytest.mark.parametrize("command", ["prune", "populate"])
def test_the_commands_take_it(name, command, folder, tmp_path, capsys):
    base = bases_of(name)[0]
    weights = tmp_path / "base.safetensors"
    record = tiny.base(base)
    save_file(
        {k: torch.from_numpy(np.array(v)) for k, v in record.weights.items()}, weights,
        metadata={"input": json.dumps(tiny.INPUT)},
    )  # fmt: skip
    options = [f"--option={k}={v}" for k, v in options_of(name, base).items()]
    which = ["--classes", "dog,cat,horse"] if command == "prune" else ["--tasks", "2", "--n-classes", "3"]
    arguments = [command, tmp_path / "z", "--base", f"tests-{base}", "--weights", weights, "--dataset", "image_folder"]
    arguments += ["--root", folder, "--producer", name, "--keep", "0.3", *which, *options]
    arguments += ["--sources", "2"] if needs_sources(MEMBERS[name]) else []
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    z = zoo.open(tmp_path / "z", create=False)
    assert [z.get(i).producer for i in z.ids()] == [name] * (1 if command == "prune" else 2)
    assert [b.id for b in z.bases()] == [record.id]
