"""The response cache: what goes in comes out, damage is passed over, LEEP is that of the stored responses."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zoo import probe as module
from zoo.errors import DataError
from zoo.files import Files
from zoo.leep import leep
from zoo.probe import Probe, ProbeScores, ResponseCache, probe_leep, probes

LABELS = ("cat", "dog", "fox", "cow")
PROBE = Probe("b" * 64, "toy", LABELS, tuple(i % 4 for i in range(40)), "d" * 64, 0)


def softmax(seed, classes=3, n=40):
    raw = np.exp(2 * np.random.default_rng(seed).normal(size=(n, classes)))
    return (raw / raw.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def cache(tmp_path):
    return ResponseCache(Files(tmp_path), PROBE)


def test_what_goes_in_comes_out_in_half_precision(cache, tmp_path):
    given = {f"s{i}": softmax(i, 2 + i % 3) for i in range(6)}
    cache.add(dict(list(given.items())[:4]))
    cache.add(dict(list(given.items())[4:]))
    for other in (cache, ResponseCache(Files(tmp_path), PROBE)):
        got = other.load()
        assert got.keys() == given.keys()
        assert all(np.array_equal(got[key], given[key].astype(np.float16)) for key in given)
    assert probes(Files(tmp_path)) == [PROBE]


def test_the_id_is_of_all_fields():
    for change in ({"base_id": "c"}, {"dataset": "x"}, {"seed": 1}, {"images_digest": "e"}, {"image_labels": (0, 1)}):
        assert replace(PROBE, **change).id != PROBE.id


def test_many_files_become_one(cache, monkeypatch):
    monkeypatch.setattr(module, "_MANY_FILES", 4)
    for i in range(6):
        cache.add({f"s{i}": softmax(i)})
    assert len(cache._parts()) <= 3 and set(cache.load()) == {f"s{i}" for i in range(6)}


def test_damaged_and_foreign_files_are_passed_over(cache, tmp_path, caplog):
    for i in range(3):
        cache.add({f"s{i}": softmax(i)})
    folder = Path(tmp_path) / "cache" / "responses" / PROBE.id
    first = sorted(folder.glob("*.parquet"))[0]
    lost = set(ResponseCache(Files(tmp_path), PROBE)._part(first.name))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 4
    first.write_bytes(bytes(data))
    (folder / "stranger.parquet").write_bytes(b"no parquet")
    with caplog.at_level(logging.WARNING):
        assert set(ResponseCache(Files(tmp_path), PROBE).load()) == {"s0", "s1", "s2"} - lost
    assert caplog.text.count("passed over") == 2
    (folder / "probe.json").write_text('{"base_id": "../.."}')
    other = folder.parent / ("e" * 64)
    other.mkdir()
    (other / "probe.json").write_bytes((folder / "probe.json").read_bytes())
    assert probes(Files(tmp_path)) == []


@pytest.mark.parametrize("wrong", [softmax(0, n=39), 3 * softmax(0), softmax(0) * np.nan, softmax(0)[0], -softmax(0)])
def test_what_is_no_response_is_refused_and_nothing_written(cache, tmp_path, wrong):
    with pytest.raises(DataError, match="s1"):
        cache.add({"s0": softmax(0), "s1": wrong})
    assert not list(Path(tmp_path).rglob("*"))


def test_leep_is_that_of_the_rows_of_the_tasks_classes(cache):
    given = {f"s{i}": softmax(i, 2 + i) for i in range(4)}
    cache.add(given)
    task = ["fox", "cat"]
    at = [i for i in range(40) if LABELS[i % 4] in task]
    y = np.array([task.index(LABELS[i % 4]) for i in at])
    got = probe_leep(PROBE, cache.load(), task)
    for key, theta in given.items():
        half = theta[at].astype(np.float16).astype(np.float64)
        assert got[key] == pytest.approx(leep(half / half.sum(1, keepdims=True), y), abs=1e-6)
        assert got[key] == pytest.approx(leep(theta[at], y), abs=2e-3), "half precision changes little"
    with pytest.raises(DataError, match="wolf"):
        probe_leep(PROBE, given, ["cat", "wolf"])


def test_of_several_probes_the_larger_one_counts(tmp_path):
    small = replace(PROBE, image_labels=PROBE.image_labels[:8])
    large = ResponseCache(Files(tmp_path), PROBE)
    ResponseCache(Files(tmp_path), small).add({"s0": softmax(0, n=8), "s1": softmax(1, n=8)})
    large.add({"s0": softmax(0)})
    scores = ProbeScores(Files(tmp_path))
    got = scores.leep("toy", ["cat", "dog"], ["b" * 64])
    assert got["s0"] == probe_leep(PROBE, large.load(), ["cat", "dog"])["s0"] and set(got) == {"s0", "s1"}
    for asked in (("other", ["cat"], ["b" * 64]), ("toy", ["wolf"], ["b" * 64]), ("toy", ["cat"], ["c" * 64])):
        assert scores.leep(*asked) == {}
