"""Latency: a number of the device, stored under its name, replaced when measured again, filtered on by SQL."""

import time

import pytest
import torch

import zoo
from mvp import latency
from mvp.latency import device_name, latency_ms, measure, vote_within
from mvp.producers import prune
from mvp.subnetwork import build
from mvp.vote import vote_from
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import NotFoundError, OptionError


def subs():
    return [prune(tiny.base(), tiny.task(), producer="random", keep=0.5, seed=seed) for seed in range(3)]


def test_it_is_about_the_time_of_a_pass(registered):  # noqa: F811
    sub = subs()[0]
    model, images = build(sub).eval(), torch.zeros(32, 3, 8, 8)
    with torch.inference_mode():
        times = []
        for _ in range(200):
            started = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - started)
    got = latency_ms(sub, batch=32, device="cpu", threads=1, seconds=0.05)
    assert 0.1 < got / (sorted(times)[100] * 1000) < 10
    with pytest.raises(OptionError, match="1 or more"):
        latency_ms(sub, batch=0)


def test_it_is_stored_with_the_device_and_filtered_on(registered, tmp_path, monkeypatch):  # noqa: F811
    z = zoo.open(tmp_path / "z")
    ids = z.add_many(subs())
    times = iter([3.0, 1.0, 2.0, 9.0])
    monkeypatch.setattr(latency, "latency_ms", lambda sub, **_: next(times))
    assert measure(z, device="cpu", threads=1, progress=False) == 3
    rows = dict(z.sql("select source, value from scores where measure = 'latency_ms'").fetchall())
    assert [rows[i] for i in z.ids()] == [3.0, 1.0, 2.0]
    assert z.sql("select distinct target, device from scores").fetchall() == [("batch=1", device_name("cpu", 1))]
    assert device_name("cpu", 1).endswith("1 threads")
    fast = "id in (select source from scores where measure = 'latency_ms' and value < 2.5)"
    found = z.nearest(["lion", "wolf"], k=None, where=fast, per_task=None, exclude=None)
    assert set(found.id) == {i for i, v in rows.items() if v < 2.5}
    slow = next(i for i, v in rows.items() if v == 1.0)
    assert measure(z, [slow[:10]], device="cpu", threads=1, progress=False) == 1
    assert z.sql("select value from scores where source = ?", [slow]).fetchall() == [(9.0,)]
    with pytest.raises(NotFoundError):
        measure(z, ["f" * 10], progress=False)
    assert set(ids) == set(z.ids())


def test_a_vote_within_a_latency_is_the_largest_that_was_fast_enough(registered, monkeypatch):  # noqa: F811
    voters, task, seen = subs(), tiny.task("lion", "wolf", "fox").task, []

    def took(sub, **_):
        seen.append(sub.macs)
        return sub.macs / 1000

    monkeypatch.setattr(latency, "latency_ms", took)
    whole = vote_from(voters, task, budget={"macs": 10**9}).macs
    limit = 0.6 * whole / 1000
    sub = vote_within(voters, task, limit, device="cpu", threads=1)
    assert sub.metrics["latency_ms"] == sub.macs / 1000 <= limit and sub.macs == max(
        m for m in seen if m / 1000 <= limit
    )
    assert min(m for m in seen if m / 1000 > limit) / sub.macs < 1.2, "the gap was halved three times"
    assert sub.options["latency"] == {"limit_ms": limit, "batch": 1, "device": device_name("cpu", 1)}
    assert vote_within(voters, task, 10.0**6).macs == whole, "the first try may be enough"
    with pytest.raises(OptionError, match="as fast as that"):
        vote_within(voters, task, 0.0)
