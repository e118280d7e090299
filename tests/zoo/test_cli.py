"""The command line: what each command prints, its JSON, and one clear line with exit code 2 on bad input."""

import json
import shutil
from pathlib import Path

import pytest
from factory import make_sub, make_tensors

import zoo
from zoo.cli import main


@pytest.fixture(scope="module")
def path(base, tmp_path_factory):
    """A zoo that no test changes."""
    z = zoo.open(tmp_path_factory.mktemp("cli") / "my.zoo")
    z.add_many([make_sub(i, base=base) for i in range(8)])
    z.add_scores([zoo.Score(z.ids()[0], "t" * 64, "leep", -0.5)])
    return z.path


@pytest.fixture
def copy(path, tmp_path):
    """A copy that a test may damage."""
    return str(shutil.copytree(path, tmp_path / "copy.zoo"))


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of a command."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def test_ls(path, capsys):
    code, out, _ = run(capsys, "ls", path)
    ids = zoo.open(path).ids()
    assert code == 0 and all(key[:12] in out for key in ids) and "8 sub-networks" in out
    code, out, _ = run(capsys, "ls", path, "--limit", 3)
    assert ids[-1][:12] in out and ids[0][:12] not in out and "newest 3 of 8" in out
    code, out, _ = run(capsys, "ls", path, "--json", "--limit", 0)
    assert [row["id"] for row in json.loads(out)] == ids


def test_show(path, capsys):
    key = zoo.open(path).ids()[2]
    code, out, _ = run(capsys, "show", path, key[:8])
    assert code == 0 and key in out and "a0 4/8" in out
    found = json.loads(run(capsys, "show", path, key, "--json")[1])
    assert found["id"] == key and len(found["channels"]["a0"]) == 4 and found["options"] == {"p": 0.5, "h": None}
    code, out, _ = run(capsys, "show", path)
    assert code == 0 and "fake" in out
    found = json.loads(run(capsys, "show", path, "--json")[1])
    assert found["counts"] == {"subnetworks": 8, "tasks": 8, "bases": 1, "scores": 1}


def test_nearest(path, capsys):
    words = ["nearest", path, "--labels", "dolphin, whale,seal", "--dataset", "cifar100", "-k", 3]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "wup" in out
    found = json.loads(run(capsys, *words, "--json")[1])
    expected = zoo.open(path).nearest(zoo.Task(["dolphin", "whale", "seal"], dataset="cifar100"), k=3)
    assert [row["id"] for row in found] == list(expected.id)
    key = zoo.open(path).ids()[0]
    code, out, _ = run(capsys, "nearest", path, "--like", key, "--where", "accuracy > 0.504", "--json", "-k", 3)
    assert code == 0 and all(row["accuracy"] > 0.504 for row in json.loads(out))
    code, out, _ = run(capsys, "nearest", path, "--labels", "a,b", "--synsets", "dog.n.01,cat.n.01", "-k", 1)
    assert code == 0


def test_iou(path, capsys, tmp_path):
    code, out, _ = run(capsys, "iou", path, "--groups", 2, "--bootstrap", 20, "--out", tmp_path / "plot.png")
    assert code == 0 and "a0" in out and (tmp_path / "plot.png").stat().st_size > 1000
    found = json.loads(run(capsys, "iou", path, "--groups", 2, "--bootstrap", 20, "--json")[1])
    assert {row["name"] for row in found["rows"]} == {"a0", "a1"} and found["about"]["by"] == "wup"


def test_sql(path, capsys):
    query = "select producer, count(*) as n from subnetworks group by 1"
    code, out, _ = run(capsys, "sql", path, query)
    assert code == 0 and "ifp" in out and "8" in out
    assert json.loads(run(capsys, "sql", path, query, "--json")[1]) == [{"producer": "ifp", "n": 8}]
    query = "select count(*) as n from subnetworks where producer = ?"
    assert json.loads(run(capsys, "sql", path, query, "--param", "x", "--json")[1]) == [{"n": 0}]
    query = "select 'nan'::double as x, timestamp '2026-01-01' as t"
    assert json.loads(run(capsys, "sql", path, query, "--json")[1]) == [{"x": None, "t": "2026-01-01T00:00:00"}]


def test_verify(copy, capsys):
    assert run(capsys, "verify", copy)[0] == 0
    assert json.loads(run(capsys, "verify", copy, "--json")[1])["ok"] is True
    blob = next(Path(copy).glob("weights/*/*.parquet"))
    blob.write_bytes(blob.read_bytes()[:-5])
    code, out, _ = run(capsys, "verify", copy)
    assert code == 1 and "DAMAGED" in out and blob.stem in out
    code, out, _ = run(capsys, "verify", copy, "--json")
    assert code == 1 and len(json.loads(out)["problems"]) == 1


def test_a_version_is_shown(copy, capsys, new_sub):
    z = zoo.open(copy)
    token = z.version
    z.add(new_sub(77))
    code, out, _ = run(capsys, "ls", copy, "--version", token, "--json")
    assert code == 0 and len(json.loads(out)) == 8


def test_reading_commands_write_nothing(path, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(path).rglob("*")}
    for words in (["ls"], ["show"], ["verify"], ["sql", "select 1"]):
        assert run(capsys, words[0], path, *words[1:])[0] == 0
    assert {p: p.stat().st_mtime_ns for p in Path(path).rglob("*")} == before


@pytest.mark.parametrize(
    "words",
    [
        [], ["bogus"], ["ls"], ["ls", "{absent}"], ["ls", "{path}", "--limit", "-1"], ["ls", "{path}", "--nope"],
        ["show", "{path}", "zzzzzzz"], ["nearest", "{path}"], ["nearest", "{path}", "--labels", "onlyone"],
        ["nearest", "{path}", "--labels", "dog,cat", "-k", "0"],
        ["nearest", "{path}", "--labels", "dog,cat", "--by", "x"],
        ["nearest", "{path}", "--labels", "qwzx,dog"], ["nearest", "{path}", "--like", "zzzzzzz"],
        ["nearest", "{path}", "--labels", "dog,cat", "--where", "nope = 1"],
        ["nearest", "{path}", "--like", "zzzzzzz", "--dataset", "x"],
        ["iou", "{path}", "--groups", "1"], ["iou", "{path}", "--out", "{absent}/x/y.png"],
        ["sql", "{path}", "drop table subnetworks"], ["sql", "{path}", "select error('stop')"], ["sql", "{path}"],
        ["verify", "{absent}"], ["verify", "{path}", "--version", "b9-c9-s9-t9"],
        ["verify", "{path}", "--version", "x"], ["verify", "{other}"],
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(path, tmp_path, capsys, words):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    places = {"path": path, "absent": tmp_path / "absent", "other": tmp_path / "other"}
    code, out, err = run(capsys, *(word.format(**places) for word in words))
    assert code == 2 and out == "" and err.startswith("zoo") and err.endswith("\n") and err.count("\n") == 1
    assert len(err) > 15 and "Traceback" not in err and not (tmp_path / "absent").exists()


@pytest.mark.parametrize("command", ["ls", "show", "nearest", "iou", "sql", "verify"])
def test_help_has_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and f"example:\n  zoo {command} " in out and "--json" in out


def test_the_word_sample(path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.opening.data_path", lambda name: Path(path))
    code, out, _ = run(capsys, "ls", "sample", "--json")
    assert code == 0 and len(json.loads(out)) == 8


def test_text_with_control_codes_and_markup_is_only_text(z, new_sub, capsys):
    task = zoo.Task(labels=["[red]dog", "cat\x1b[2J"], synsets=["dog.n.01", "cat.n.01"], dataset="\x07")
    z.add(new_sub(task=task, weights=make_tensors(0, a0=4, a1=3, classes=2)))
    for words in (["ls"], ["show", z.ids()[0]], ["sql", "select labels from subnetworks"]):
        code, out, _ = run(capsys, words[0], z.path, *words[1:])
        assert code == 0 and "[red]dog" in out and "\x1b[2J" not in out and "\x07" not in out


def test_recall(capsys):
    code, out, err = run(capsys, "recall", "sample", "-k", 3, "--passes", "8,40")
    assert (code, err) == (0, "") and "60 tasks left out" in out and "recall of the 3 nearest" in out
    assert run(capsys, "recall", "sample", "--passes", "1")[0] == 2
