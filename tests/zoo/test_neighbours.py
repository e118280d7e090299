"""What a query gives back, as a sequence, as columns, as tables and as text."""

from dataclasses import fields

import pytest
from fakes import make_snapshot, sub_row

from zoo.neighbours import Neighbour, Neighbours
from zoo.query import nearest

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]


def row(i: int, **changes) -> Neighbour:
    """A neighbour in which every field is another one."""
    values = {
        "id": f"{i:02d}" * 32, "score": 1 - i / 10, "labels": ("a", f"b{i}"), "dataset": None if i == 1 else f"d{i}",
        "producer": f"p{i}", "keep": i / 7, "accuracy": None if i == 2 else i / 9, "shared": i, "generation": i + 1,
        "task_id": f"t{i}", "base_id": f"base{i}",
    }  # fmt: skip
    return Neighbour(**{**values, **changes})


ROWS = [row(i) for i in range(4)]


@pytest.fixture
def found():
    return Neighbours(ROWS, "leep", ["x", "y"], unmapped=3, removed={"base": 2})


def test_it_is_a_sequence_of_its_rows(found):
    assert len(found) == 4 and list(found) == ROWS and found[0] == ROWS[0] and found[-1] == ROWS[3]
    assert ROWS[2] in found and found.index(ROWS[2]) == 2 and list(reversed(found)) == ROWS[::-1]
    with pytest.raises(IndexError):
        found[4]


@pytest.mark.parametrize("cut", [slice(2), slice(1, 3), slice(None, None, -1), slice(9, 12)])
def test_a_slice_is_again_neighbours_of_the_same_query(found, cut):
    some = found[cut]
    assert isinstance(some, Neighbours) and list(some) == ROWS[cut]
    assert (some.measure, some.target, some.unmapped, some.removed) == ("leep", ("x", "y"), 3, {"base": 2})


def test_the_fields_of_a_row_are_columns(found):
    columns = {name for name, kind in vars(Neighbours).items() if isinstance(kind, property)}
    assert columns >= {"id", "score", "labels", "dataset", "producer", "keep", "accuracy", "shared", "task_id"}
    for name in columns:
        assert getattr(found, name) == tuple(getattr(r, name) for r in ROWS)


def test_tables_hold_all_fields_and_rows(found):
    names = [field.name for field in fields(Neighbour)]
    assert list(found.to_pandas().columns) == names and found.to_arrow().column_names == names
    for name in names:
        assert [tuple(v) if name == "labels" else v for v in found.to_arrow()[name].to_pylist()] == [
            getattr(r, name) for r in ROWS
        ]


def test_what_is_printed_names_the_query_the_measure_and_what_was_left_out(found):
    lines = str(found).splitlines()
    assert lines[0] == "nearest to x, y" and lines[-1].startswith("3 candidate task(s)")
    assert {"id", "leep", "shared", "labels", "producer", "accuracy"} <= set(lines[1].split())
    assert sum(line.split()[0] == "03" * 6 for line in lines) == 1 and "a, b3" in str(found)
    assert "candidate task" not in str(Neighbours(ROWS, "leep", ["x"]))


def test_no_neighbours_are_printed_and_converted_too():
    none = Neighbours([], "wup", ["x", "y"])
    assert not none and none.id == () and len(none.to_pandas()) == 0 and none.to_arrow().num_rows == 0
    assert "nearest to x, y" in str(none) and none._repr_html_()


def test_neighbours_print_and_convert():
    snapshot = make_snapshot([
        sub_row("buses", "t1", ["bus.n.01", "truck.n.01"], accuracy=0.7), sub_row("cats2", "t2", CATS, accuracy=0.9),
    ])  # fmt: skip
    found = nearest(snapshot, DOGS, k=2)
    assert found.id == ("cats2", "buses")
    text = str(found)
    assert text == repr(found) and "cats2" in text and "cat.n.01, lion.n.01" in text and "0.900" in text
    frame = found.to_pandas()
    assert frame["id"].tolist() == list(found.id) and {"score", "labels", "producer", "accuracy", "shared"} <= set(
        frame
    )
    assert found.to_arrow()["score"].to_pylist() == list(found.score)
    pytest.importorskip("polars")
    assert found.to_polars()["labels"].to_list() == [list(x) for x in found.labels]


def test_html_escapes_labels():
    zoo = make_snapshot([sub_row("a", "t", ["<script>alert(1)</script>", "cat.n.01"])])
    html = nearest(zoo, DOGS, k=1)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
