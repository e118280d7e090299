"""Bits that flip and files that are cut or lost: never a wrong result, always a typed error that names the damage."""

import random
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.errors import CorruptionError, ZooError


@pytest.fixture
def full(z, new_sub):
    for i in range(3):
        z.add(new_sub(i))
    z.add_scores([zoo.Score(key, "t" * 64, "leep", -1.5) for key in z.ids()])
    return z


def content(path):
    """Everything that a reader of the zoo can see."""
    z = zoo.open(path)
    snapshot = z.snapshot()
    seen = [getattr(snapshot, name).to_pylist() for name in ("bases", "tasks", "scores")]
    seen.append(snapshot.subnetworks.table().to_pylist())
    for sub in z:
        seen += [(name, array.tobytes()) for name, array in sorted(sub.weights.items())]
        seen += [(name, array.tobytes()) for name, array in sorted(sub.base.weights.items())]
    return repr(seen)


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit of a file; returns what was there."""
    good = path.read_bytes()
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(bad))
    return good


@pytest.mark.parametrize("kind", ["weights/*/*.parquet", "subnetworks/*.parquet", "bases/*.parquet", "tasks/*.parquet",
                                  "scores/*.parquet", "*/_delta_log/*.json"])  # fmt: skip
def test_a_flipped_bit_is_an_error_or_harmless(full, kind):
    right, clock = content(full.path), random.Random(kind)
    files = sorted(Path(full.path).glob(kind))
    errors = harmless = 0
    for _ in range(15):
        file = clock.choice(files)
        good = flip(file, clock.randrange(8 * file.stat().st_size))
        try:
            assert content(full.path) == right, f"{file} gave another result"
            harmless += 1
        except ZooError:
            errors += 1
        file.write_bytes(good)
    assert content(full.path) == right and errors > 2, (errors, harmless)


@pytest.mark.parametrize("kind", ["weights/*/*.parquet", "subnetworks/*.parquet", "bases/*.parquet", "tasks/*.parquet",
                                  "scores/*.parquet", "*/_delta_log/*.json", "zoo.json"])  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "empty", "lost", "zeros"])
def test_verify_finds_every_damaged_file(full, kind, how):
    assert full.verify().ok
    for file in sorted(Path(full.path).glob(kind))[:3]:
        good = file.read_bytes()
        match how:
            case "cut":
                file.write_bytes(good[: len(good) // 2])
            case "empty":
                file.write_bytes(b"")
            case "zeros":
                file.write_bytes(bytes(len(good)))
            case "lost":
                file.unlink()
        try:
            report = zoo.open(full.path, create=False).verify()
            if how == "lost" and "_delta_log" in kind and report.ok:
                # Without its newest log entry a table is an older version of itself; only the data file tells.
                assert "no log entry" in str(report.notes), file
            else:
                assert not report.ok and "DAMAGED" in str(report), file
        except ZooError:
            assert kind == "zoo.json"
        file.write_bytes(good)
    assert full.verify().ok


def test_verify_lists_all_damage_not_only_the_first(full):
    for i, sub in enumerate(full):
        blob = Path(full.path) / "weights" / sub.weights_digest[:2] / f"{sub.weights_digest}.parquet"
        if i == 0:
            blob.unlink()
        else:
            flip(blob, 8 * 60)
    part = next(Path(full.path).glob("scores/*.parquet"))
    part.write_bytes(part.read_bytes()[:-4])
    report = zoo.open(full.path).verify()
    assert len(report.problems) == 4, str(report)
    assert sum("missing" in p for p in report.problems) == 1
    assert sum(p.startswith("scores") for p in report.problems) == 1


def test_damaged_weights_are_noticed_when_they_are_used(full):
    sub = full.get(full.ids()[1])
    blob = Path(full.path) / "weights" / sub.weights_digest[:2] / f"{sub.weights_digest}.parquet"
    good = flip(blob, 8 * 100)
    assert len(full) == 3 and sub.channels
    with pytest.raises(CorruptionError, match="verify"):
        _ = sub.weights["fc.bias"]
    blob.write_bytes(good)
    assert sub.weights["fc.bias"].shape == (5,), "a repaired file can be read by the same record"


def test_adding_again_repairs_weights(full, new_sub):
    key = full.ids()[0]
    sub = full.get(key)
    blob = Path(full.path) / "weights" / sub.weights_digest[:2] / f"{sub.weights_digest}.parquet"
    blob.unlink()
    full.remove(key)
    assert full.add(new_sub(0)) == key and full.verify().ok


def test_a_lost_part_of_a_table_names_it_and_the_way_out(full):
    part = next(Path(full.path).glob("subnetworks/*.parquet"))
    part.unlink()
    for use in (
        lambda z: z.ids(),
        lambda z: z.version,
        lambda z: z.sql("select 1"),
        lambda z: z.nearest(["dog", "cat"]),
    ):
        with pytest.raises(CorruptionError, match=f"{part.name}.*\n?.*zoo verify"):
            use(zoo.open(full.path))


def test_a_file_that_another_program_changed(full):
    """The Parquet file is whole and its log entry right, but a value is not what was stored."""
    import pyarrow.parquet as pq

    part = next(Path(full.path).glob("subnetworks/*.parquet"))
    table = pq.read_table(part, partitioning=None)
    at = table.schema.get_field_index("accuracy")
    pq.write_table(table.set_column(at, "accuracy", [[0.99]]), part)
    with pytest.raises(CorruptionError, match="SHA-256 that its name says") as caught:
        zoo.open(full.path).ids()
    assert "subnetworks" in str(caught.value) and part.name in str(caught.value)
    assert not zoo.open(full.path).verify().ok


def test_a_log_entry_that_lost_its_key(full):
    """delta-rs reads on without a word, and the row is gone: the seal notices."""
    log = sorted(Path(full.path).glob("subnetworks/_delta_log/*.json"))[-1]
    good = log.read_text()
    log.write_text(good.replace('{"add"', '{"adt"'))
    for check in (lambda z: z.ids(), lambda z: z._store.snapshot()):
        with pytest.raises(CorruptionError):
            check(zoo.open(full.path))
    assert not zoo.open(full.path).verify().ok
    log.write_text(good)
    assert len(zoo.open(full.path)) == 3


def test_a_lost_log_entry_in_the_middle(full):
    log = sorted(Path(full.path).glob("subnetworks/_delta_log/*.json"))[1]
    log.unlink()
    with pytest.raises(CorruptionError):
        zoo.open(full.path).ids()
    assert not zoo.open(full.path).verify().ok


def test_a_dangling_reference(full):
    """A sub-network whose base is gone from its table."""
    full._store.tables["bases"].refresh()
    full._store.tables["bases"].forget(full._store.tables["bases"].parts())
    with pytest.raises(CorruptionError, match="base_id"):
        zoo.open(full.path).ids()
    report = zoo.open(full.path).verify()
    assert not report.ok and sum("not in bases" in p for p in report.problems) == 3


def test_numbers_are_not_rounded(z, new_sub):
    value = float(np.nextafter(0.1, 1))
    key = z.add(new_sub(metrics={"accuracy": value, "tiny": 5e-324}))
    assert zoo.open(z.path).get(key).metrics == {"accuracy": value, "tiny": 5e-324}
