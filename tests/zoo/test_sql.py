"""SQL over the views: what it gives, and five ways out that are closed."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from factory import make_sub

import zoo
from zoo import sql
from zoo.errors import OptionError


@pytest.fixture(scope="module")
def full(base, tmp_path_factory):
    """A zoo that no test changes."""
    z = zoo.open(tmp_path_factory.mktemp("sql") / "my.zoo")
    z.add_many([make_sub(i, base=base, producer="ifp" if i % 2 else "random") for i in range(6)])
    return z


def test_the_four_views(full):
    found = full.sql("select producer, count(*), avg(accuracy) from subnetworks group by 1 order by 1").fetchall()
    assert [(name, n, round(mean, 6)) for name, n, mean in found] == [("ifp", 3, 0.503), ("random", 3, 0.502)]
    for view, n in (("subnetworks", 6), ("tasks", 6), ("bases", 1), ("scores", 0)):
        assert full.sql(f"select count(*) from {view}").fetchall() == [(n,)]
    names = {"id", "base_id", "task_id", "dataset", "labels", "synsets", "producer", "keep", "accuracy", "params",
             "macs", "parents", "generation", "created_at"}  # fmt: skip
    assert names <= set(full.sql("select * from subnetworks").columns)


def test_results_as_pandas_arrow_and_tuples(full):
    relation = full.sql("select * from subnetworks order by id")
    assert len(relation.df()) == 6 and len(relation.fetchall()) == 6
    assert pa.table(full.sql("select id, labels, channels from subnetworks").arrow()).num_rows == 6


def test_nested_columns(full):
    axis = full.sql("select len(channels['a0']), labels[1], embeddings['prototype'] from subnetworks").fetchall()
    assert {row[0] for row in axis} == {4} and len(axis[0][2]) == 4
    assert full.sql("select count(*) from subnetworks where list_contains(labels, 'dog')").fetchall() > [(0,)]


def test_times_are_utc(full):
    stored = full.sql("select created_at from subnetworks order by created_at limit 1").fetchall()[0][0]
    assert stored == full.snapshot().subnetworks["created_at"][0].as_py().replace(tzinfo=None)


def test_values_are_parameters(full):
    key = full.ids()[0]
    assert full.sql("select id from subnetworks where id = ?", [key]).fetchall() == [(key,)]
    assert full.sql("select id from subnetworks where id = $k", {"k": key}).fetchall() == [(key,)]
    assert full.sql("select id from subnetworks where id = ?", ["' or true --"]).fetchall() == []


def test_two_results_live_side_by_side(full):
    a, b = full.sql("select 1"), full.sql("select 2")
    assert (a.fetchall(), b.fetchall()) == ([(1,)], [(2,)])


ESCAPES = [
    "select * from read_csv('{file}')",
    "select * from '{file}'",
    "select * from read_text('{file}')",
    "select * from glob('{folder}/*')",
    "copy subnetworks to '{folder}/out.csv'",
    "copy (select 1) to '{folder}/out.csv'",
    "attach '{folder}/out.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "reset enable_external_access",
    "pragma enable_external_access",
    "export database '{folder}/out'",
    "create table out as select * from subnetworks",
    "drop view subnetworks",
    "delete from subnetworks",
    "insert into scores select * from scores",
    "select 1; copy (select 1) to '{folder}/out.csv'",
    "select * from secret_variable",
    "select getenv('HOME')",
    "call pragma_version()",
    "",
    ";",
    "select",
    "select nope from subnetworks",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_way_out(full, tmp_path, text):
    secret_variable = pa.table({"x": [1]})  # noqa: F841 - DuckDB would find it by name in this frame
    (tmp_path / "f").mkdir()
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with pytest.raises(OptionError):
        full.sql(text.format(file=file, folder=tmp_path / "f")).fetchall()
    assert not list((tmp_path / "f").iterdir()) and len(full) == 6


@pytest.mark.parametrize("text", ESCAPES[:11])
def test_the_connection_itself_is_locked(full, tmp_path, text):
    """Not only the check that a query is one SELECT: DuckDB refuses too."""
    (tmp_path / "f").mkdir()
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    with pytest.raises(duckdb.Error):
        sql.connect(full.snapshot()).execute(text.format(file=file, folder=tmp_path / "f")).fetchall()
    assert not list((tmp_path / "f").iterdir())


def test_a_condition_gives_ids(full):
    snapshot = full.snapshot()
    rows = full.sql("select id from subnetworks where producer = 'ifp' and accuracy > 0.502").fetchall()
    wanted = {key for (key,) in rows}
    assert sql.matching_ids(snapshot, "producer = 'ifp' and accuracy > 0.502") == wanted and len(wanted) == 2
    assert sql.matching_ids(snapshot, "false") == set() and len(sql.matching_ids(snapshot, "true")) == 6


@pytest.mark.parametrize(
    "where",
    ["nope = 1", "", "true) or (true", "true; drop view subnetworks", "1 union select 1", "select 1", None,
     "accuracy >",
     "(select count(*) from read_csv('/etc/passwd')) > 0", "id in (select content from read_text('/etc/passwd'))"],
)  # fmt: skip
def test_what_is_no_condition(full, where):
    with pytest.raises(OptionError, match="where"):
        sql.matching_ids(full.snapshot(), where)
    assert Path(full.path).exists() and len(full) == 6


def test_the_query_is_text(full):
    with pytest.raises(OptionError):
        full.sql(3)
    with pytest.raises(OptionError):
        full.sql("select ?", None)
