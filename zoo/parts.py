"""The data files of a table: Parquet under a name that holds the file's SHA-256, compared whenever one is read.

One hash over a file costs less than a hundredth of one over each row, so a large zoo opens quickly. Files that another
program wrote have other names; their rows are checked one by one, and so is a row that is read alone.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from zoo import arrow
from zoo.deltalog import DAMAGED
from zoo.errors import CorruptionError
from zoo.files import Files

# A row that is asked for by its id is read with its group: 2 ms.
ROWS_A_GROUP = 1024
# Larger tables are compacted into several files, so that a reader never holds more than about 100 MB of one.
ROWS_A_PART = 65_536
_OURS = re.compile(r"[0-9a-f]{32}-([0-9a-f]{64})\.parquet")


def write_part(files: Files, table: str, rows: pa.Table) -> str:
    """Write rows as a new data file, durable when this returns.

    Returns:
        Its name: a random part, so that no two writers share a file, and its SHA-256.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, row_group_size=ROWS_A_GROUP)
    data = sink.getvalue().to_pybytes()
    part = f"{uuid.uuid4().hex}-{hashlib.sha256(data).hexdigest()}.parquet"
    files.put(f"{table}/{part}", data)
    return part


def verified(files: Files, table: str, part: str) -> tuple[bytes, bool]:
    """The bytes of a data file, and whether its name holds their SHA-256 (it is then compared).

    Raises:
        FileNotFoundError: There is none.
        CorruptionError: Its SHA-256 is another one.
    """
    data, ours = files.read(f"{table}/{part}"), _OURS.fullmatch(part)
    if ours is not None and (found := hashlib.sha256(data).hexdigest()) != ours[1]:
        raise CorruptionError(
            f"{table}: {part} does not have the SHA-256 that its name says", got=found, expected=ours[1], hint=DAMAGED
        )
    return data, ours is not None


def read_part(files: Files, table: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The verified rows of a data file.

    Args:
        files: The zoo's files.
        table: Name of the table.
        part: Name of the data file.
        columns: Only these columns; None = all.

    Raises:
        CorruptionError: The file is missing, damaged or unreadable; or it is another program's and has a row without
            its checksum.
    """
    names = arrow.SCHEMAS[table].names if columns is None else list(columns)
    try:
        data, ours = verified(files, table, part)
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        rows = _fitted(table, file.read(columns=names if ours else None, use_threads=False))
    except FileNotFoundError:
        raise _missing(table, part) from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _unreadable(table, part, error) from error
    if not ours:
        arrow.check(table, rows)
    return rows.select(names)


def read_group(files: Files, table: str, part: str, row: int) -> tuple[int, pa.Table]:
    """The rows that are stored in one piece with a row; the rest of the file is neither read nor checked.

    Compare the row with its checksums (`zoo.arrow.check`) before it is used: nothing here does.

    Returns:
        The place of the first of them in the file, and the rows.

    Raises:
        CorruptionError: The file is missing or unreadable.
    """
    try:
        with files.open(f"{table}/{part}") as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            group, first = 0, 0
            while row - first >= (size := file.metadata.row_group(group).num_rows):
                group, first = group + 1, first + size
            return first, _fitted(table, file.read_row_group(group, use_threads=False))
    except FileNotFoundError:
        raise _missing(table, part) from None
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        raise _unreadable(table, part, error) from error


def _fitted(table: str, rows: pa.Table) -> pa.Table:
    """Rows in the table's own columns and types; raises KeyError or an Arrow error when they do not have them."""
    schema = arrow.SCHEMAS[table]
    names = [name for name in schema.names if name in rows.column_names]
    return rows.select(names).cast(pa.schema([schema.field(name) for name in names]))


def _missing(table: str, part: str) -> CorruptionError:
    return CorruptionError(
        f"{table}: the log names {part}, which is not there",
        hint="Run `zoo verify PATH`; `z.gc()` deletes the files of versions older than its retention",
    )


def _unreadable(table: str, part: str, error: Exception) -> CorruptionError:
    return CorruptionError(f"{table}: {part} cannot be read ({str(error)[:120]})", hint=DAMAGED)
