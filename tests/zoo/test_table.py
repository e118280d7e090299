"""Result tables: text, HTML and data frames."""

import math

import numpy as np
import pytest

from zoo.table import Table

TABLE = Table(
    {"name": ["a", "bb"], "x": [1, None], "y": [np.float32(0.5), math.nan], "tags": [("p", "q"), ()]},
    title="title",
    notes=["a note"],
)


def test_text_is_aligned_and_absent_values_are_dashes():
    title, head, rule, first, second, note = str(TABLE).split("\n")
    assert (title, note) == ("title", "a note")
    assert first.split() == ["a", "1", "0.500", "p,", "q"] and second.split() == ["bb", "-", "-"]
    assert len({line.index(c) for line, c in ((head, "x"), (first, "1"), (second, "-"))}) == 1
    assert set(rule) == {"-", " "}


def test_html_is_escaped():
    html = Table({"<b>": ["<i>&"]}, title="<t>", notes=["<n>"])._repr_html_()
    assert not any(tag in html for tag in ("<b>", "<i>", "<t>", "<n>"))
    assert "&lt;i&gt;&amp;" in html


def test_frames_hold_plain_values():
    frame = TABLE.to_pandas()
    assert frame["y"].tolist()[0] == 0.5 and frame["tags"].tolist() == [["p", "q"], []]
    assert TABLE.to_arrow().column_names == ["name", "x", "y", "tags"]
    assert TABLE.rows()[0]["tags"] == ("p", "q") and len(TABLE) == 2 and TABLE["name"] == ["a", "bb"]


def test_polars():
    pytest.importorskip("polars")
    assert TABLE.to_polars()["x"].to_list() == [1, None]


def test_other_columns_can_be_shown():
    table = Table({"x": [1.0]}, shown={"interval": ["1 [0, 2]"]})
    assert "1 [0, 2]" in str(table) and table.to_pandas()["x"].tolist() == [1.0]


def test_an_empty_table_prints():
    assert str(Table({"x": []})).split() == ["x", "-"]
    assert len(Table({})) == 0
