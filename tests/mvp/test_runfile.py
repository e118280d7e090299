import dataclasses

import pytest

from mvp.runfile import append_run, read_runs
from zoo.errors import DataError


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    value: float
    n: int


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "deep" / "runs.csv"
    rows = [Row('a, "b"\nc', 0.1 + 0.2, 3), Row("", float("inf"), -1)]
    assert read_runs(Row, path) == [] and read_runs(Row, None) == []
    for row in rows:
        append_run(row, path)
        append_run(row, None)
    assert read_runs(Row, str(path)) == rows
    assert path.read_text().count("name,value,n") == 1


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "name,value,n\nx,y,1\n", "name,value,n\nx,1.5\n"])
def test_a_file_of_something_else(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(DataError, match="does not hold such runs"):
        read_runs(Row, tmp_path / "runs.csv")
