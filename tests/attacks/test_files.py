"""Files that somebody put into a zoo on purpose: no path is followed, no forged tensor is used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import zoo
from zoo import arrow
from zoo.errors import CorruptionError
from zoo.weights import encode


@pytest.fixture
def full(z, new_sub):
    for i in range(2):
        z.add(new_sub(i))
    return z


def blob(z, digest):
    return Path(z.path) / "weights" / digest[:2] / f"{digest}.parquet"


def test_weights_replaced_by_those_of_another(full):
    a, b = full
    shutil.copy(blob(full, b.weights_digest), blob(full, a.weights_digest))
    with pytest.raises(CorruptionError, match="other tensors"):
        _ = full.get(a.id).weights["fc.bias"]
    report = full.verify()
    assert len(report.problems) == 1 and a.id in report.problems[0]


def test_one_changed_number_in_weights(full):
    sub = next(iter(full))
    tensors = {name: array.copy() for name, array in sub.weights.items()}
    tensors["fc.bias"][0] = np.nextafter(tensors["fc.bias"][0], np.float32(9))
    blob(full, sub.weights_digest).write_bytes(encode(tensors)[1])
    with pytest.raises(CorruptionError, match="other tensors"):
        _ = zoo.open(full.path).get(sub.id).weights["fc.bias"]


@pytest.mark.parametrize(
    "name",
    ["../../secret.parquet", "/etc/passwd", "..%2f..%2fsecret.parquet", "sub/x.parquet", "x.csv", "s3://b/x.parquet"],
)
def test_a_log_entry_that_points_elsewhere(full, name):
    """Even with a right seal."""
    from zoo.deltalog import SEAL, seal

    shutil.copy(next(Path(full.path).glob("subnetworks/*.parquet")), Path(full.path).parent / "secret.parquet")
    log = sorted(Path(full.path).glob("subnetworks/_delta_log/*.json"))[-1]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["path"] = name
        if "commitInfo" in line:
            line["commitInfo"][SEAL] = seal([name], [])
    log.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(CorruptionError):
        zoo.open(full.path).ids()
    assert not zoo.open(full.path).verify().ok


@pytest.mark.parametrize("digest", ["../../../secret", "x" * 64, "", None])
def test_a_row_whose_digest_is_a_path(full, digest):
    """The checksum of the row was computed anew, as an attacker would."""
    sub = next(iter(full))
    rows = [{**arrow.subnetwork_row(sub), "id": "e" * 64, "weights_digest": digest}]
    full._store.tables["subnetworks"].append(arrow.to_table("subnetworks", rows))
    again = zoo.open(full.path)
    with pytest.raises(CorruptionError):
        again.get("e" * 64)
    assert not again.verify().ok and again.get(sub.id).weights["fc.bias"].shape == (5,)


def test_a_forged_row_under_a_right_checksum(full):
    sub = next(iter(full))
    rows = [{**arrow.subnetwork_row(sub), "id": "e" * 64, "producer": "forged"}]
    full._store.tables["subnetworks"].append(arrow.to_table("subnetworks", rows))
    with pytest.raises(CorruptionError, match="another id"):
        full.get("e" * 64)
    assert not full.verify().ok


@pytest.mark.parametrize("plan", ["{}", "[]", "not json", '{"axes": {}}', "null"])
def test_a_forged_plan(full, plan):
    sub = next(iter(full))
    base = arrow.base_row(sub.base, sub.created_at)
    other = {**base, "id": "d" * 64, "plan": plan}
    full._store.tables["bases"].append(arrow.to_table("bases", [other]))
    full._store.tables["subnetworks"].append(
        arrow.to_table("subnetworks", [{**arrow.subnetwork_row(sub), "id": "e" * 64, "base_id": "d" * 64}])
    )
    with pytest.raises(CorruptionError):
        zoo.open(full.path).get("e" * 64)
    assert not full.verify().ok


def test_a_part_with_other_columns(full):
    part = next(Path(full.path).glob("tasks/*.parquet"))
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["checksum"]), part)
    with pytest.raises(CorruptionError, match="tasks"):
        zoo.open(full.path).ids()


def test_links_out_of_the_zoo_give_no_other_tensors(full, tmp_path):
    sub = next(iter(full))
    target = tmp_path / "elsewhere"
    target.write_bytes(encode({"x": np.ones(1)})[1])
    blob(full, sub.weights_digest).unlink()
    blob(full, sub.weights_digest).symlink_to(target)
    with pytest.raises(CorruptionError):
        _ = zoo.open(full.path).get(sub.id).weights["x"]
