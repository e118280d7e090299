"""A small result table: columns by name, printed as text or HTML, and handed to pandas, Arrow or Polars."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Table:
    """Equally long columns by name.

    Args:
        columns: {name: values}.
        title: A line above the printed table.
        notes: Lines below it.
        shown: The columns to print where these are not the columns themselves (numbers with their interval in one
            cell).
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        title: str = "",
        notes: Sequence[str] = (),
        shown: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.columns = {name: list(values) for name, values in columns.items()}
        self._shown = self.columns if shown is None else shown
        self.title, self.notes = title, tuple(notes)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        return [dict(zip(self.columns, row)) for row in zip(*self.columns.values())]

    def to_arrow(self) -> "pa.Table":
        """As a pyarrow Table; NaN stays NaN."""
        import pyarrow as pa

        return pa.table({name: pa.array(_plain(values)) for name, values in self.columns.items()})

    def to_pandas(self) -> "pd.DataFrame":
        """As a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame({name: _plain(values) for name, values in self.columns.items()})

    def to_polars(self) -> "pl.DataFrame":
        """As a Polars DataFrame; needs the extra `polars`."""
        import polars as pl

        return pl.DataFrame({name: _plain(values) for name, values in self.columns.items()}, strict=False)

    def __str__(self) -> str:
        return text_table(self._shown, self.title, self.notes)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._shown, self.title, self.notes)


def text_table(columns: Mapping[str, Sequence[Any]], title: str = "", notes: Sequence[str] = ()) -> str:
    """Columns as aligned text: numbers to the right with three decimals, texts to the left, absent values as "-"."""
    cells = {name: [cell(value) for value in values] for name, values in columns.items()}
    right = {name: all(isinstance(v, int | float | np.number | None) for v in columns[name]) for name in columns}
    width = {name: max(len(name), *(len(c) for c in column), 0) for name, column in cells.items()}

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(width[n]) if right[n] else v.ljust(width[n]) for n, v in zip(columns, values)]
        return "  ".join(parts).rstrip()

    body = [line(row) for row in zip(*cells.values())]
    rule = "  ".join("-" * width[name] for name in columns)
    return "\n".join([*([title] if title else []), line(list(columns)), rule, *body, *notes])


def html_table(columns: Mapping[str, Sequence[Any]], title: str = "", notes: Sequence[str] = ()) -> str:
    """The same as an HTML table; every text is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in zip(*columns.values())
    )
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def cell(value: Any) -> str:
    """One value as text."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    if isinstance(value, tuple | list):
        return ", ".join(str(v) for v in value)
    return str(value)


def _plain(values: Sequence[Any]) -> list[Any]:
    """Values without numpy scalars or tuples, which Arrow and Polars each treat in their own way."""
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    return [list(v) if isinstance(v, tuple) else v for v in plain]
