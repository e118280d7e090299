import hashlib
import json
import os

import pytest

from zoo import deltalog
from zoo.deltalog import check_commit, check_process, delta, log_name, seal, without_location
from zoo.errors import ConflictError, CorruptionError, ReadOnlyError, ZooError
from zoo.files import Files


def entry(files, version, *actions):
    files.put(log_name("tasks", version), "\n".join(json.dumps(a) for a in actions).encode())


def commit_of(added, removed, found=None):
    info = {"commitInfo": {"zooSeal": seal(added, removed) if found is None else found}}
    return [info, *({"add": {"path": p}} for p in added), *({"remove": {"path": p}} for p in removed)]


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "z")


def test_the_seal_is_over_the_sorted_names():
    expected = hashlib.sha256(b'[["a.parquet", "b.parquet"], ["c.parquet"]]').hexdigest()
    assert seal(["b.parquet", "a.parquet"], ["c.parquet"]) == expected
    assert seal(["a.parquet"], ["b.parquet"]) != seal(["b.parquet"], ["a.parquet"])


def test_log_names_are_deltas():
    assert log_name("tasks", 12) == "tasks/_delta_log/00000000000000000012.json"


def test_a_sealed_commit_gives_its_files(files):
    entry(files, 1, *commit_of(["a.parquet"], ["b.parquet", "c.parquet"]))
    assert check_commit(files, "tasks", 1) == (["a.parquet"], ["b.parquet", "c.parquet"])


@pytest.mark.parametrize(
    "actions",
    [
        commit_of(["a.parquet"], [], found="0" * 64),  # another seal
        [{"commitInfo": {}}, {"add": {"path": "a.parquet"}}],  # files, but no seal
        [*commit_of(["a.parquet"], [])[:1], {"adc": {"path": "a.parquet"}}],  # a key that lost a bit
        [*commit_of(["a.parquet"], [])[:1], {"add": {"path": "e.parquet"}}],  # a name that lost a bit
        [{"protocol": {}}],  # no commit information at all
    ],
)
def test_a_commit_that_does_not_have_its_seal(files, actions):
    entry(files, 1, *actions)
    with pytest.raises(CorruptionError, match="does not have its seal"):
        check_commit(files, "tasks", 1)


def test_creation_and_vacuum_name_no_files_and_have_no_seal(files):
    entry(files, 0, {"commitInfo": {"operation": "CREATE TABLE"}}, {"metaData": {}})
    assert check_commit(files, "tasks", 0) == ([], [])


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b'{"add": 3}'])
def test_an_entry_that_is_none(files, text):
    files.put(log_name("tasks", 1), text)
    with pytest.raises(CorruptionError, match="is no log entry"):
        check_commit(files, "tasks", 1)


def test_a_missing_entry(files):
    with pytest.raises(CorruptionError, match="version 7 is missing"):
        check_commit(files, "tasks", 7)


def test_without_location_drops_that_alone():
    actions = [
        {
            "commitInfo": {
                "operation": "CREATE TABLE",
                "operationParameters": {"location": "file:///home/me", "mode": "x"},
            }
        },
        {"protocol": {"minReaderVersion": 1}},
    ]
    del (expected := json.loads(json.dumps(actions)))[0]["commitInfo"]["operationParameters"]["location"]
    text = without_location("\n".join(json.dumps(a) for a in actions))
    assert [json.loads(line) for line in text.splitlines()] == expected
    assert without_location(text) == text


def test_a_forked_child_is_refused(monkeypatch):
    monkeypatch.setattr(deltalog, "_process", [os.getpid() + 1])
    with pytest.raises(ConflictError, match="fork"):
        check_process()


@pytest.mark.parametrize(
    ("raised", "write", "expected"),
    [
        (OSError("Permission denied"), True, ReadOnlyError), (OSError("Read-only file system"), False, ReadOnlyError),
        (OSError("no space left"), True, ZooError), (OSError("bad magic"), False, CorruptionError),
        (ConflictError("as it is"), False, ConflictError), (RuntimeError("a mistake of ours"), False, RuntimeError),
    ],
)  # fmt: skip
def test_what_deltalake_raises_becomes_an_error_of_ours(raised, write, expected):
    with pytest.raises(expected) as error, delta("tasks", write=write):
        raise raised
    assert type(error.value) is expected


def test_conflicts_pass_through():
    from deltalake.exceptions import CommitFailedError

    with pytest.raises(CommitFailedError), delta("tasks", write=True):
        raise CommitFailedError("another writer won")
