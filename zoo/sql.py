"""SQL over a snapshot: DuckDB in memory, over the snapshot's Arrow tables, without access to anything else.

Files, network, extensions, settings and Python variables are out of reach: the user's text can read the four views and
compute, no more. Only one SELECT (or EXPLAIN) is run.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zoo.errors import OptionError
from zoo.snapshot import WRITE_ORDER, Snapshot

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

Parameters = Sequence[Any] | Mapping[str, Any]

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}
_HIDDEN = ("checksum", "checksums", "format")


def query(snapshot: Snapshot, text: str, parameters: Parameters | None = None) -> "DuckDBPyRelation":
    """Run one SELECT over the views `subnetworks`, `tasks`, `bases`, `scores`.

    Args:
        snapshot: What the views show.
        text: One SELECT or EXPLAIN statement. `created_at` is a timestamp in UTC; `channels`, `metrics`, `embeddings`
            and `kept_tokens` are maps.
        parameters: Values of `?` (a sequence) or `$name` (a mapping) in the text. Put what comes from elsewhere here,
            never into the text.

    Returns:
        A DuckDB relation: `.df()`, `.fetchall()`, `.arrow()`, or print it.

    Raises:
        OptionError: The text does not parse, is not one SELECT, or names something that is not there or not allowed.
    """
    import duckdb

    if not isinstance(text, str):
        raise OptionError("sql: the query is text", got=type(text).__name__)
    connection = connect(snapshot)
    try:
        statements = connection.extract_statements(text)
        readable = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
        if len(statements) != 1 or statements[0].type not in readable:
            kinds = ", ".join(s.type.name for s in statements) or "nothing"
            raise OptionError(
                "sql: a zoo is read by one SELECT", got=kinds, hint="z.add, z.add_scores and z.remove change it"
            )
        return connection.sql(text, params=parameters)
    except duckdb.Error as error:
        raise OptionError("sql: DuckDB refuses the query", got=_first_lines(error)) from error


def matching_ids(snapshot: Snapshot, where: str) -> set[str]:
    """Ids of the sub-networks that meet a SQL condition.

    Args:
        snapshot: What to search.
        where: What would follow WHERE: "accuracy > 0.7 and producer = 'ifp'".

    Raises:
        OptionError: It is no condition over the columns of `subnetworks`.
    """
    import duckdb

    if not isinstance(where, str):
        raise OptionError("where: a condition is SQL text", got=type(where).__name__)
    try:
        # DuckDB parses the text as one expression here, so it cannot end the statement and begin another.
        found = connect(snapshot, where).table("subnetworks").filter(where).project("id").fetchall()
    except duckdb.Error as error:
        raise OptionError(
            f"where: DuckDB refuses the condition {where[:80]!r}", got=_first_lines(error),
            expected="such as \"accuracy > 0.7 and producer = 'ifp'\"",
        ) from error  # fmt: skip
    return {row[0] for row in found}


def connect(snapshot: Snapshot, condition: str | None = None) -> "DuckDBPyConnection":
    """A locked-down in-memory connection with the four views; one a query, as results are read lazily.

    Args:
        snapshot: What the views show.
        condition: Only this will be asked, of `subnetworks`: of a large zoo, the columns that it names are read.
    """
    import duckdb

    connection = duckdb.connect(":memory:", config=_LOCKED)
    for name in WRITE_ORDER:
        if name == "subnetworks":
            table = _table(snapshot) if condition is None else _named(snapshot, condition)
        else:
            table = getattr(snapshot, name)
        connection.register(name, _view(table))
    return connection


def _table(snapshot: Snapshot) -> pa.Table:
    """All columns of `subnetworks`, read once for all queries of a snapshot."""
    kept = vars(snapshot)
    if "_sql_table" not in kept:
        table = snapshot.subnetworks
        kept["_sql_table"] = table if isinstance(table, pa.Table) else table.table()
    whole: pa.Table = kept["_sql_table"]
    return whole


def _named(snapshot: Snapshot, condition: str) -> pa.Table:
    """The columns of `subnetworks` that a condition can see: those it names, or all when it may speak of whole rows."""
    table, text = snapshot.subnetworks, condition.lower()
    if isinstance(table, pa.Table) or any(word in text for word in ("subnetworks", "*", "columns")):
        return _table(snapshot)
    return table.select([name for name in table.column_names if name in text or name in ("id", "created_at")])


def _view(table: pa.Table) -> pa.Table:
    table = table.drop_columns([name for name in _HIDDEN if name in table.column_names])
    # DuckDB would show a time with a zone in the machine's own zone, and needs another package to hand it to Python.
    at = table.schema.get_field_index("created_at")
    return table.set_column(at, "created_at", table["created_at"].cast(pa.timestamp("us")))


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("LINE 1:")[0].split())[:240]
