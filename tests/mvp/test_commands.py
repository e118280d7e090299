import csv
import json

import numpy as np
import pytest
from PIL import Image

import zoo
from mvp.bases import load_base
from mvp.cli import main
from mvp.nets import REGISTERED
from mvp.producers import producers

CLASSES = ("cat", "dog", "horse", "sheep", "wolf", "zebra")
IFP = ("--option", "steps=2", "--option", "prune_every=1", "--option", "prune_share=0.7", "--option", "batch_size=8")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of classes with images of 32 px, four for training and two for testing each."""
    root = tmp_path_factory.mktemp("images") / "animals"
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        for split, n in (("train", 4), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(40 * c + rng.integers(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return str(root)


@pytest.fixture
def run(capsys):
    def run(*args):
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def data(images):
    return "--dataset", "image_folder", "--root", images


def test_producers(run):
    code, out, _ = run("producers", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and rows.keys() == producers().keys()
    assert rows["ifp"]["options"]["steps"] == 1000 and rows["ifp"]["paper"] and rows["random"]["options"] == {}
    assert "ifp" in run("producers")[1]


def test_prune_then_finetune(run, data, tmp_path):
    path = tmp_path / "my.zoo"
    start = ("prune", path, "--base", "resnet20", *data, "--keep", "0.25", *IFP)
    code, out, err = run(*start, "--classes", "wolf, cat")
    assert (code, err) == (0, "")
    z = zoo.open(path)
    (sub,) = z
    assert sub.task.labels == ("wolf", "cat") and sub.task.dataset == "animals" and sub.keep == 0.25
    assert (sub.options["steps"], sub.options["prune_share"]) == (2, 0.7) and sub.base.name == "resnet20"
    assert sub.id[:8] in out
    # The base is in the zoo now, so that it need not be named; naming it means the zoo's, not a new one.
    assert run(*("prune", path, *data, "--producer", "random", "--classes", "dog,cat"))[0] == 0
    assert run(*("prune", path, "--base", "resnet20", "--seed", "5", *data, "--producer", "random", "--classes",
                 "dog,cat"))[0] == 0  # fmt: skip
    assert len(z) == 3 and len(z.bases()) == 1
    code, out, err = run("finetune", path, sub.id[:10], *data, "--steps", "2")
    assert (code, err) == (0, "") and len(z) == 4
    trained = z.get(z.ids()[-1])
    assert trained.options["finetune"]["steps"] == 2 and trained.task == sub.task
    assert sub.id[:8] in out and trained.id[:8] in out


def test_meta_train_then_prune(run, data, tmp_path):
    out, path = tmp_path / "stamp.safetensors", tmp_path / "my.zoo"
    short = ("--option", "tasks=2", "--option", "images=8", "--option", "batch_size=4", "--option", "width=8")
    code, said, err = run("meta-train", "vgg_narrow", *data, "--out", out, "--splits", "3", "--option",
                          "iterations=2", *short)  # fmt: skip
    assert (code, err.count("\n") < 4) == (0, True) and "cross-entropy" in said
    code, said, err = run(
        "prune", path, "--base", "vgg_narrow", "--weights", out.with_suffix(".base.safetensors"), *data, "--producer",
        "stamp", "--keep", "0.3", "--option", f"generator={out}", "--option", "set_images=8", "--option",
        "finetune_steps=1", "--classes", "wolf,cat",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (sub,) = zoo.open(path)
    assert sub.producer == "stamp" and sub.base.name == "vgg_narrow" and sub.base.num_classes == len(CLASSES)
    ask = ("vote", path, *data, "--classes", "zebra,cat", "-k", "1", "--by", "stamp", "--steps", "1")
    code, said, err = run(*ask, "--generator", out)
    assert (code, err) == (0, "") and zoo.open(path).get(zoo.open(path).ids()[-1]).parents == (sub.id,)
    code, said, err = run(*ask)
    assert code == 2 and "a file for 'stamp'" in err
    code, said, err = run("meta-train", "vgg_narrow", *data, "--out", out, "--splits", "3", "--frozen")
    assert code == 2 and "Give a trained base" in err


def test_populate_in_parts_then_vote_and_compare(run, data, tmp_path):
    path = tmp_path / "my.zoo"
    fill = ("populate", path, "--base", "resnet20", *data, "--producer", "random", "--keep", "0.25", "--tasks", "4",
            "--n-classes", "2", "--seed", "1")  # fmt: skip
    for part in ("1/2", "2/2"):
        code, out, err = run(*fill, "--shard", part)
        assert (code, err) == (0, "") and "2 sub-networks of resnet20" in out
    z = zoo.open(path)
    assert len(z) == 4 and z.sql("select count(*) from scores").fetchall() == [(0,)]
    code, out, err = run(*fill)
    assert (code, err) == (0, "") and "4 sub-networks" in out and len(z) == 4
    assert z.sql("select count(*) from scores").fetchall() == [(16,)]

    for by in ("wup", "leep", "prototype"):
        code, out, err = run("vote", path, *data, "--classes", "zebra,wolf,cat", "-k", "2", "--by", by, "--steps", "1")
        assert (code, err) == (0, "")
        voted = z.get(z.ids()[-1])
        assert voted.generation == 1 and len(voted.parents) == 2 and voted.options["by"] == by
        assert all(i[:8] in out for i in (*voted.parents, voted.id))

    code, out, err = run("responses", path, *data, "--images", "40")
    assert (code, err) == (0, "") and "7 sub-networks run" in out and "rank correlation" in out
    code, out, err = run("measure", path, "--threads", "1", "--where", "generation = 0")
    assert (code, err) == (0, "") and "latency of 1 image" in out and z.ids()[0][:12] in out
    code, out, err = run("search", path, *data, "--classes", "zebra,horse", "-k", "2", "--passes", "3")
    assert (code, err) == (0, "") and "nearest to zebra, horse" in out

    out_folder = tmp_path / "out"
    code, out, err = run(
        "compare", path, *data, "--tasks", "1", "--n-classes", "4", "--seeds", "1", "--steps", "1", "--out", out_folder
    )
    # The starts of `mvp compare` are votes of up to five; this zoo has four tasks.
    assert code == 2 and "4 tasks of the zoo may vote" in err and err.startswith("mvp compare: ")
    assert run(*fill[:-1], "2")[0] == 0
    code, out, err = run(
        "compare", path, *data, "--tasks", "1", "--n-classes", "4", "--seeds", "1", "--steps", "1", "--out", out_folder
    )
    assert (code, err) == (0, "") and "nearest 3 - random after 1 steps" in out
    assert (out_folder / "starts.png").stat().st_size > 5000
    with (out_folder / "runs.csv").open() as file:
        assert {row["start"] for row in csv.DictReader(file)} == {
            "nearest 3", "nearest 1", "nearest 5", "farthest 3", "random",
        }  # fmt: skip


def test_contest(run, data, tmp_path):
    out = tmp_path / "runs"
    args = ("contest", "--base", "resnet20", *data, "--tasks", "1", "--n-classes", "2", "--steps", "1", "--keep", "0.3")
    args += ("--entry", "random", "--entry", "ifp steps=2 prune_every=1 prune_share=0.7 batch_size=8", "--out", out)
    code, text, _ = run(*args)
    assert code == 0 and "1 tasks x 1 seeds, keep 0.3, 1 fine-tuning steps" in text and (out / "producers.png").exists()
    with (out / "runs.csv").open() as stream:
        assert [row["entry"].split()[0] for row in csv.DictReader(stream)] == ["random", "ifp"]
    assert run(*args)[1] == text  # from the file


def test_measures(run, data, tmp_path):
    path, out = tmp_path / "my.zoo", tmp_path / "runs"
    fill = ("populate", path, "--base", "resnet20", *data, "--producer", "random", "--keep", "0.25", "--tasks", "4",
            "--n-classes", "2", "--seed", "1")  # fmt: skip
    assert run(*fill)[0] == 0
    ask = ("measures", path, *data, "--tasks", "1", "--n-classes", "3", "-k", "1", "--groups", "3", "--steps", "1",
           "--images", "6", "--out", out)  # fmt: skip
    code, text, err = run(*ask)
    assert (code, err) == (0, "") and "3 blocks of 1 voters" in text and "left out" not in text
    names = {"wup", "leep", "nce", "logme", "hscore", "prototype", "task2vec"}
    with (out / "runs.csv").open() as stream:
        assert {row["measure"] for row in csv.DictReader(stream)} == names
    assert (out / "measures.png").stat().st_size > 5000
    z = zoo.open(path)
    assert {m for (m,) in z.sql("select distinct measure from scores").fetchall()} == names - {"wup"}
    version, rows = z.version, (out / "runs.csv").read_text()
    assert run(*ask) == (0, text, "") and z.version == version and (out / "runs.csv").read_text() == rows
    code, _, err = run(*ask[:-2], "--by", "leep,stamp")
    assert code == 2 and "a file for 'stamp'" in err
    code, _, err = run(*ask[:-2], "--by", "leep,wop")
    assert code == 2 and "no such measure" in err


def test_populate_with_related_tasks_needs_enough_classes(run, data, tmp_path):
    code, _, err = run("populate", tmp_path / "z", "--base", "resnet20", *data, "--draw", "related")
    assert code == 2 and "6 labels are too few for related tasks" in err
    assert not (tmp_path / "z").exists()


def test_pretrain(run, data, tmp_path):
    from torch import nn

    REGISTERED["tests-net"] = lambda n: nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, n))
    try:
        out_file = tmp_path / "new" / "net.safetensors"
        code, out, _ = run("pretrain", "tests-net", "--dataset", "digits", "--out", out_file, "--epochs", "1")
        assert code == 0 and "test accuracy" in out and out_file.is_file()
        args = ("pretrain", "tests-net", "--dataset", "digits", "--epochs", "1", "--method", "simsiam")
        code, out, _ = run(*args, "--out", tmp_path / "siam.safetensors")
        assert code == 0 and "k-NN accuracy" in out and (tmp_path / "siam.safetensors").is_file()
    finally:
        del REGISTERED["tests-net"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,unicorn"], "unknown unicorn"),
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,dog", "--keep", "2"], "keep"),
        (["prune", "{zoo}", "--base", "resnet21", "{data}", "--classes", "cat,dog"], "resnet21"),
        (["prune", "{zoo}", "{data}", "--classes", "cat,dog"], "no base yet"),
        (["prune", "{zoo}", "--base", "resnet20", "--dataset", "nonsense", "--classes", "a,b"], "nonsense"),
        (["prune", "{zoo}", "--base", "resnet20", "--weights", "absent.pt", "{data}", "--classes", "cat,dog"],
         "absent.pt"),
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,dog", "--option", "steps"], "NAME=VALUE"),
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,dog", "--option", "steps=abc"], "steps"),
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,dog", "--option", "stepz=3"], "stepz"),
        (["prune", "{zoo}", "--base", "resnet20", "{data}", "--classes", "cat,dog", "--producer", "x"], "no producer"),
        (["populate", "{zoo}", "--base", "resnet20", "{data}", "--shard", "3/2"], "--shard"),
        (["populate", "{zoo}", "--base", "resnet20", "{data}", "--tasks", "0", "--n-classes", "2"], "no tasks"),
        (["populate", "{zoo}", "--base", "resnet20", "{data}", "--tasks", "99", "--n-classes", "2"], "cannot draw 99"),
        (["vote", "{zoo}", "{data}", "--classes", "cat,dog"], "zoo"),
        (["finetune", "{zoo}", "abcdef12", "{data}"], "zoo"),
        (["compare", "{zoo}", "{data}"], "zoo"),
        (["measures", "{zoo}", "{data}"], "zoo"),
        (["pretrain", "nonsense", "--dataset", "digits", "--out", "{zoo}"], "no registered base"),
        (["pretrain", "resnet20", "--dataset", "digits", "--out", "{zoo}", "--epochs", "0"], "epochs 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_exit_code_2(args, says, run, data, tmp_path):
    filled = []
    for arg in args:
        filled += data if arg == "{data}" else [arg.replace("{zoo}", str(tmp_path / "my.zoo"))]
    code, out, err = run(*filled)
    assert (code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith(f"mvp {args[0]}: ") and says in err
    assert "Traceback" not in err and all(line.startswith("  - ") for line in rest)
    assert args[0] not in ("vote", "finetune", "compare", "measures") or not (tmp_path / "my.zoo").exists()


def test_a_base_of_random_weights_follows_the_seed():
    assert load_base("resnet20", seed=1).id == load_base("resnet20", seed=1).id != load_base("resnet20", seed=2).id
