"""Rows and back, and that no changed value gets past the checksums."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from factory import make_base, make_sub, make_task

from zoo import arrow
from zoo.errors import CorruptionError, RecordError
from zoo.records import Score

NOW = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)


def tables() -> dict[str, pa.Table]:
    base, subs = make_base(), [make_sub(i) for i in range(3)]
    vector = np.arange(3, dtype=np.float32)
    scores = [Score("a" * 64, "b" * 64, "leep", -0.5), Score("a" * 64, "b" * 64, "prototype", vector=vector)]
    return {
        "bases": arrow.to_table("bases", [arrow.base_row(base, NOW)]),
        "tasks": arrow.to_table("tasks", [arrow.task_row(sub.task, NOW) for sub in subs]),
        "subnetworks": arrow.to_table("subnetworks", [arrow.subnetwork_row(sub) for sub in subs]),
        "scores": arrow.to_table("scores", [arrow.score_row(score, NOW) for score in scores]),
    }


TABLES = tables()


@pytest.mark.parametrize("name", arrow.SCHEMAS)
def test_tables_have_their_schema_and_pass_the_check(name):
    assert TABLES[name].schema == arrow.SCHEMAS[name]
    arrow.check(name, TABLES[name])
    arrow.check(name, TABLES[name].slice(1))
    arrow.check(name, pa.concat_tables([TABLES[name], TABLES[name]]))


def test_a_sub_network_survives_the_way_there_and_back():
    sub = make_sub(
        1, removed_blocks=("body",), kept_tokens={"body": 7}, parents=("f" * 64,), generation=2, kind="mixed",
        created_at=NOW, options={"p": 0.1, "deep": {"x": [1, None, True, "ü"]}},
    )  # fmt: skip
    row = arrow.to_table("subnetworks", [arrow.subnetwork_row(sub)]).to_pylist()[0]
    back = arrow.subnetwork_of(row, sub.base, sub.weights, {})
    assert back == sub and back.id == sub.id
    for name in ("producer", "keep", "kind", "mode", "init", "seed", "parents", "generation", "metrics", "params",
                 "macs", "removed_blocks", "kept_tokens", "weights_digest", "created_at", "accuracy"):  # fmt: skip
        assert getattr(back, name) == getattr(sub, name), name
    assert dict(back.options) == sub.options and back.task == sub.task and back.task.seed == sub.task.seed
    assert {k: v.tolist() for k, v in back.channels.items()} == {k: v.tolist() for k, v in sub.channels.items()}
    assert np.array_equal(back.embeddings["prototype"], sub.embeddings["prototype"])


def test_a_base_and_a_task_survive_the_way_there_and_back():
    base, task = make_base(), make_task(2, dataset=None, synsets=("dog.n.01", None, "cat.n.01", None, None))
    row = arrow.to_table("bases", [arrow.base_row(base, NOW)]).to_pylist()[0]
    back = arrow.base_of(row, base.weights)
    assert back == base and back.plan == base.plan and back.input == base.input and back.info == base.info
    assert list(back.plan["axes"]) == list(base.plan["axes"])
    row = arrow.to_table("tasks", [arrow.task_row(task, NOW)]).to_pylist()[0]
    assert arrow.task_of(row) == task and row["created_at"] == NOW


def changed(value):
    """Another value of the same Arrow type."""
    match value:
        case None:
            return None
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return np.nextafter(value, 9e9) if value == value else 0.0
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
        case datetime():
            return value.replace(microsecond=value.microsecond ^ 1)
        case list() if value and isinstance(value[0], tuple):
            return [(value[0][0], changed(value[0][1])), *value[1:]]
        case list():
            return [*value[:-1], changed(value[-1])] if value else ["x"]
    raise TypeError(value)


@pytest.mark.parametrize(("name", "column"), [(n, c) for n, schema in arrow.SCHEMAS.items() for c in schema.names])
def test_every_changed_value_is_noticed(name, column):
    for i, row in enumerate(TABLES[name].to_pylist()):
        if row[column] is None or column in ("removed_blocks", "parents", "kept_tokens") or row[column] == []:
            bad = {"vector": [1.0], "dataset": "x"}.get(column, [("x", 1)] if column == "kept_tokens" else ["x"])
        else:
            bad = changed(row[column])
        if column == "embeddings":
            key, vector = row[column][0]
            bad = [(key, [*vector[:-1], float(np.nextafter(np.float32(vector[-1]), np.float32(9)))])]
        if column == "vector" and row[column] is not None:
            bad = [*row[column][:-1], 2.5]
        rows = TABLES[name].to_pylist()
        rows[i] = {**row, column: bad}
        with pytest.raises(CorruptionError) as caught:
            arrow.check(name, pa.Table.from_pylist(rows, schema=arrow.SCHEMAS[name]))
        assert name in str(caught.value)


def test_the_message_names_table_id_and_column_group():
    rows = TABLES["subnetworks"].to_pylist()
    rows[1]["channels"][0] = ("a0", [0, 1, 2, 4])
    rows[2]["accuracy"] = 1.0
    with pytest.raises(CorruptionError) as caught:
        arrow.check("subnetworks", pa.Table.from_pylist(rows, schema=arrow.SCHEMAS["subnetworks"]))
    message = str(caught.value)
    assert f"row {rows[1]['id']}" in message and "(channels)" in message
    assert f"row {rows[2]['id']}" in message and "(measured)" in message and rows[0]["id"] not in message


def test_column_groups_of_two_rows_cannot_be_swapped():
    a, b, _ = TABLES["subnetworks"].to_pylist()
    for row, other in ((a, b), (b, a)):
        sums, others = dict(row["checksums"]), dict(other["checksums"])
        row["checksums"] = list({**sums, "channels": others["channels"]}.items())
    a["channels"], b["channels"] = b["channels"], a["channels"]
    with pytest.raises(CorruptionError):
        arrow.check("subnetworks", pa.Table.from_pylist([a, b], schema=arrow.SCHEMAS["subnetworks"]))


@pytest.mark.parametrize(
    "change",
    [{"options": {"x": object()}}, {"options": {1: "a"}}, {"options": {"x": float("nan")}}, {"seed": 2**70},
     {"producer": "\ud800"}, {"macs": 2**64}],
)  # fmt: skip
def test_what_no_column_can_hold_is_a_record_error(change):
    sub = replace(make_sub(0), **change)
    with pytest.raises(RecordError):
        arrow.to_table("subnetworks", [arrow.subnetwork_row(sub)])


def test_a_row_with_other_fields_than_its_id_says_is_refused():
    sub = make_sub(0)
    row = arrow.to_table("subnetworks", [arrow.subnetwork_row(sub)]).to_pylist()[0]
    with pytest.raises(CorruptionError):
        arrow.subnetwork_of({**row, "producer": "other"}, sub.base, sub.weights, {})
    with pytest.raises(CorruptionError):
        arrow.subnetwork_of({**row, "channels": [("a0", [99])]}, sub.base, sub.weights, {})


def test_json_columns_are_plain_json():
    row = arrow.base_row(make_base(), NOW)
    assert json.loads(row["plan"])["axes"]["a0"]["n"] == 8


def test_equal_scores():
    def row(value, vector=None):
        return arrow.score_row(Score("a", "b", "m", value, vector=vector), NOW)

    one = np.ones(2, np.float32)
    assert arrow.scores_equal(row(0.5), row(0.5)) and not arrow.scores_equal(row(0.5), row(0.25))
    assert arrow.scores_equal(row(float("nan"), one), row(float("nan"), one))
    assert not arrow.scores_equal(row(float("nan"), one), row(float("nan"), 2 * one))
    assert not arrow.scores_equal(row(0.5, one), row(0.5))


def test_maps_may_be_empty():
    sub = make_sub(1, channels={}, weights={}, embeddings={}, metrics={}, options={})
    table = arrow.to_table("subnetworks", [arrow.subnetwork_row(sub)])
    arrow.check("subnetworks", table)
    row = table.to_pylist()[0]
    assert row["channels"] == [] and row["embeddings"] == [] and row["accuracy"] is None
    assert arrow.subnetwork_of(row, sub.base, {}, {}) == sub
