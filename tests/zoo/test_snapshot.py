"""Version tokens, ids by prefix, and the order and identity of rows, against a plain sort."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from factory import make_base, make_sub
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo import arrow
from zoo.errors import NotFoundError, OptionError
from zoo.records import Score
from zoo.snapshot import MIN_PREFIX, Snapshot, make_token, order, parse_token

AT = datetime(2026, 1, 1, tzinfo=UTC)
counts = st.integers(0, 10**15 - 1)


@given(counts, counts, counts, counts)
def test_a_token_names_the_version_of_each_table(bases, subnetworks, scores, tasks):
    versions = {"bases": bases, "subnetworks": subnetworks, "scores": scores, "tasks": tasks}
    token = make_token(versions)
    assert token == f"b{bases}-c{subnetworks}-s{scores}-t{tasks}" and parse_token(token) == versions


@pytest.mark.parametrize(
    "text", ["b1-c1-s1", "c1-b1-s1-t1", "b-1-c1-s1-t1", " b1-c1-s1-t1", "b1-c1-s1-t1234567890123456", 3]
)
def test_what_is_no_token_is_refused(text):
    with pytest.raises(OptionError, match="b1-c40-s12-t9"):
        parse_token(text)


def make_snapshot(subs, bases):
    return Snapshot(
        "b0-c0-s0-t0", arrow.to_table("bases", [arrow.base_row(base, AT) for base in bases]),
        arrow.to_table("tasks", []), arrow.to_table("subnetworks", [arrow.subnetwork_row(sub) for sub in subs]),
        arrow.to_table("scores", []),
    )  # fmt: skip


def test_a_prefix_of_at_least_six_characters_stands_for_an_id():
    subs, bases = [make_sub(i) for i in range(4)], [make_base(), make_base(1)]
    snapshot = make_snapshot(subs, bases)
    for table, records in (("subnetworks", subs), ("bases", bases)):
        for record in records:
            for n in (MIN_PREFIX, 12, 63, 64):
                assert snapshot.find(record.id[:n], table=table) == record.id
            with pytest.raises(NotFoundError, match="at least 6 characters"):
                snapshot.find(record.id[: MIN_PREFIX - 1], table=table)
    with pytest.raises(NotFoundError, match=r"no sub-network .*holds 4"):
        snapshot.find(bases[0].id)
    with pytest.raises(NotFoundError, match="no base"):
        snapshot.find(subs[0].id, table="bases")
    assert [snapshot.rows[sub.id] for sub in subs] == [0, 1, 2, 3] and snapshot.base_rows[bases[1].id] == 1


def naive_order(scores):
    """Of each key the latest row, by time and then key."""
    latest = {}
    for score, at in scores:
        key = (score.source, score.target, score.measure, score.device)
        latest[key] = max(latest.get(key, (at, score.value)), (at, score.value))
    return sorted((at, *key, value) for key, (at, value) in latest.items())


@pytest.mark.parametrize("seed", range(5))
def test_of_scores_the_latest_of_a_source_target_measure_and_device_stays(seed):
    rng = random.Random(seed)
    scores = [
        (Score(rng.choice("ab"), rng.choice("xy"), rng.choice(["leep", "m"]), i, device=rng.choice(["", "cpu"])),
         AT + timedelta(seconds=second)) for i, second in enumerate(rng.sample(range(60), 40))
    ]  # fmt: skip
    table = order("scores", arrow.to_table("scores", [arrow.score_row(score, at) for score, at in scores]))
    columns = ["created_at", "source", "target", "measure", "device", "value"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == naive_order(scores)
    arrow.check("scores", table)
    assert order("scores", table) is table, "rows that are in order are not copied"


@pytest.mark.parametrize("token", ["", "b1", "b1-c1-s1-t1-x", "b-c-s-t", "1-1-1-1", "b1-c1-s1-t1\n", None.__class__])
def test_tokens_that_are_none(z, token):
    with pytest.raises(OptionError):
        zoo.open(z.path, version=token)


def test_ids_may_be_shortened(z, new_sub):
    keys = z.add_many([new_sub(i) for i in range(3)])
    assert z.get(keys[0][:6]).id == keys[0] and z.base(z.base().id[:6]).id == z.base().id
    for bad in (keys[0][:5], "", "f" * 64, "zzzzzz", keys[0] + "0"):
        with pytest.raises(NotFoundError):
            z.get(bad)
    with pytest.raises(NotFoundError):
        z.get(None)


def test_an_ambiguous_prefix_lists_what_has_it(z):
    snapshot = z.snapshot()
    snapshot.__dict__["rows"] = {"abcdef11": 0, "abcdef22": 1}
    with pytest.raises(NotFoundError, match="abcdef11"):
        snapshot.find("abcdef")


def test_rows_are_in_order_and_the_earliest_of_an_id_stays():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    subs = [make_sub(i, created_at=at + timedelta(seconds=s)) for i, s in ((0, 5), (1, 1), (2, 1), (3, 9), (1, 0))]
    table = order("subnetworks", arrow.to_table("subnetworks", [arrow.subnetwork_row(s) for s in subs]))
    times, ids = table["created_at"].to_pylist(), table["id"].to_pylist()
    assert ids == [subs[4].id, subs[2].id, subs[0].id, subs[3].id] and times == sorted(times)
    arrow.check("subnetworks", table)
