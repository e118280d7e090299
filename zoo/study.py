"""What the IoU studies give back: numbers with intervals, as tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.bootstrap import Estimate
from zoo.channels import Floats, Ints
from zoo.table import Table, cell
from zoo.units import THIRDS, Unit

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from matplotlib.figure import Figure

Path = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class Study:
    """IoU of kept channels by depth and similarity group; made by `iou_by_depth`.

    Attributes:
        per: "axis" | "layer" | "block".
        units: U places by depth.
        iou: Mean IoU of each place and group, (U, G); group 1 (column 0) holds the most similar pairs.
        unit_gap: Group 1 minus group G, (U, 1), over targets that have both.
        floor: Expected IoU of random sets of the kept sizes, float64 (U,).
        sizes: Neighbours of each target in each group, int64 (T, G).
        axes: The axes, each once, whatever `per` is; thirds and shared classes are over these.
        axis_floor: Their floors.
        thirds: IoU by group over all axes and those of each third of depth, (4, G).
        third_gaps: Group 1 minus group G of the same, and of the last third minus the first, (5, 1).
        shared: IoU by number of shared classes 0, 1, ..., (4, S).
        shared_sizes: Pairs of each target that share 0, 1, ... classes, int64 (T, S).
        about: What was compared and how: base, mode, producer, keep, generation, by, version, ...
    """

    per: str
    units: Sequence[Unit]
    iou: Estimate
    unit_gap: Estimate
    floor: Floats
    sizes: Ints
    axes: Sequence[Unit]
    axis_floor: Floats
    thirds: Estimate
    third_gaps: Estimate
    shared: Estimate
    shared_sizes: Ints
    about: Mapping[str, Any]

    @property
    def groups(self) -> int:
        """Number of similarity groups."""
        return self.sizes.shape[1]

    def __len__(self) -> int:
        return len(self.units)

    def table(self) -> Table:
        """One row a place and group: name, kind, depth, third, block, n, group, iou, low, high, floor, targets."""
        rows = [
            {
                **_unit(unit), "group": g + 1, "iou": self.iou.mean[u, g], "low": self.iou.low[u, g],
                "high": self.iou.high[u, g], "floor": self.floor[u], "targets": int(self.iou.targets[u, g]),
            }
            for u, unit in enumerate(self.units) for g in range(self.groups)
        ]  # fmt: skip
        return Table({name: [row[name] for row in rows] for name in rows[0]})

    def to_pandas(self) -> "pd.DataFrame":
        """`table()` as a pandas DataFrame."""
        return self.table().to_pandas()

    def to_arrow(self) -> "pa.Table":
        """`table()` as a pyarrow Table."""
        return self.table().to_arrow()

    def to_polars(self) -> "pl.DataFrame":
        """`table()` as a Polars DataFrame; needs the extra `polars`."""
        return self.table().to_polars()

    @property
    def gaps(self) -> Table:
        """Group 1 minus the last group at each place, with intervals."""
        gap = self.unit_gap
        columns: dict[str, list[Any]] = {
            "name": [unit.name for unit in self.units], "depth": [unit.depth for unit in self.units],
            "third": [THIRDS[unit.third] for unit in self.units],
            "gap": gap.mean[:, 0].tolist(), "low": gap.low[:, 0].tolist(), "high": gap.high[:, 0].tolist(),
        }  # fmt: skip
        return Table(columns, f"IoU of group 1 minus group {self.groups} (95% interval over tasks)")

    @property
    def gap(self) -> Table:
        """Group 1 minus the last group over all axes and by thirds of depth, each axis once, with intervals."""
        names = ["all", *THIRDS, "last - first"]
        third = np.array([unit.third for unit in self.axes])
        members = [np.ones(len(third), bool), *(third == t for t in range(3))]
        floor = [float(self.axis_floor[m].mean()) if m.any() else np.nan for m in members]
        e, first, last = self.third_gaps, self.thirds.mean[:, 0], self.thirds.mean[:, -1]
        columns: dict[str, list[Any]] = {
            "depth": names, "axes": [*(int(m.sum()) for m in members), None],
            "group 1": [*first.tolist(), np.nan], f"group {self.groups}": [*last.tolist(), np.nan],
            "floor": [*floor, np.nan], "gap": e.mean[:, 0].tolist(), "low": e.low[:, 0].tolist(),
            "high": e.high[:, 0].tolist(),
        }  # fmt: skip
        return Table(columns, f"Gap of IoU, group 1 - group {self.groups}, by depth (each axis once; 95% interval)")

    def shared_class_table(self) -> Table:
        """IoU against the number of classes that two tasks share: one row a number and part of the network."""
        long: list[dict[str, Any]] = []
        wide: list[dict[str, Any]] = []
        for s in np.flatnonzero(self.shared_sizes.sum(axis=0) > 0):
            pairs, targets = int(self.shared_sizes[:, s].sum()), int((self.shared_sizes[:, s] > 0).sum())
            line: dict[str, Any] = {"shared": int(s), "targets": targets, "pairs": pairs}
            for p, part in enumerate(("all", *THIRDS)):
                mean, low, high = (float(x[p, s]) for x in (self.shared.mean, self.shared.low, self.shared.high))
                long.append({"shared": int(s), "depth": part, "iou": mean, "low": low, "high": high,
                             "targets": targets, "pairs": pairs})  # fmt: skip
                line[part] = _interval(mean, low, high)
            wide.append(line)
        return Table(_columns(long), "IoU by number of shared classes (each axis once; 95% interval over tasks)",
                     shown=_columns(wide))  # fmt: skip

    def size_table(self) -> Table:
        """How many neighbours fall into each group."""
        columns: dict[str, list[Any]] = {
            "group": list(range(1, self.groups + 1)), "mean size": self.sizes.mean(axis=0).tolist(),
            "smallest": self.sizes.min(axis=0).tolist(), "largest": self.sizes.max(axis=0).tolist(),
            "targets without": (self.sizes == 0).sum(axis=0).tolist(),
        }  # fmt: skip
        return Table(columns, "Group sizes (neighbours of a target; 1 = most similar)")

    def _by_unit(self) -> Table:
        a = self.about
        e, g = self.iou, self.unit_gap
        shown: dict[str, list[Any]] = {
            self.per: [unit.name for unit in self.units],
            "depth": [round(unit.depth, 1) for unit in self.units],
            "n": [unit.n for unit in self.units], "floor": self.floor.tolist(),
        }  # fmt: skip
        for i in range(self.groups):
            shown[f"group {i + 1}"] = e.mean[:, i].tolist()
        shown["gap"] = [_interval(*values) for values in zip(g.mean[:, 0], g.low[:, 0], g.high[:, 0])]
        title = (
            f"IoU of kept channels by {self.per} and similarity group (by={a['by']}, 1 = most similar)\n"
            f"{a['subnetworks']} sub-networks of {a['base']}, mode {a['mode']}, producer {a['producer']}, "
            f"keep {a['keep']}, generation {a['generation']}, version {a['version']}"
        )
        left_out = f"{a['unmapped']} sub-networks have no label with a WordNet noun and were left out"
        notes = [left_out] if a["unmapped"] else []
        return Table(shown, title, notes)

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in (self._by_unit(), self.gap, self.size_table()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in (self._by_unit(), self.gap, self.size_table()))

    def plot(self, path: Path | None = None) -> "Figure":
        """IoU against depth, one line a group, in the style of MVP's Fig. 1 and 2; saved where `path` says."""
        from zoo.plots import plot_study

        return plot_study(self, path)

    def plot_gap(self, path: Path | None = None) -> "Figure":
        """Group 1 minus the last group against depth, in the style of MVP's Fig. 6."""
        from zoo.plots import plot_gap

        return plot_gap(self, path)


@dataclass(frozen=True, eq=False)
class Against:
    """IoU of several sets of sub-networks with reference ones, by depth; made by `iou_against`.

    Attributes:
        per: "axis" | "layer" | "block".
        units: U places by depth.
        lines: {name of the set: its mean IoU with the references, (U, 1)}.
        sizes: {name of the set: how many sub-networks}.
        floor: Expected IoU of random sets of the kept sizes, float64 (U,).
        without: Sub-networks that have no reference and are left out.
    """

    per: str
    units: Sequence[Unit]
    lines: Mapping[str, Estimate]
    sizes: Mapping[str, int]
    floor: Floats
    without: int

    def table(self) -> Table:
        """One row a place and set."""
        rows = [
            {
                **_unit(unit), "set": name, "iou": e.mean[u, 0], "low": e.low[u, 0], "high": e.high[u, 0],
                "floor": self.floor[u], "targets": int(e.targets[u, 0]),
            }
            for name, e in self.lines.items() for u, unit in enumerate(self.units)
        ]  # fmt: skip
        return Table({name: [row[name] for row in rows] for name in rows[0]})

    def to_pandas(self) -> "pd.DataFrame":
        """`table()` as a pandas DataFrame."""
        return self.table().to_pandas()

    def to_arrow(self) -> "pa.Table":
        """`table()` as a pyarrow Table."""
        return self.table().to_arrow()

    def _by_unit(self) -> Table:
        shown: dict[str, list[Any]] = {
            self.per: [unit.name for unit in self.units], "depth": [unit.depth for unit in self.units],
            "n": [unit.n for unit in self.units], "floor": self.floor.tolist(),
        }  # fmt: skip
        for name, e in self.lines.items():
            shown[f"{name} ({self.sizes[name]})"] = [
                _interval(*values) for values in zip(e.mean[:, 0], e.low[:, 0], e.high[:, 0])
            ]
        notes = [f"{self.without} sub-networks have no reference and were left out"] if self.without else []
        return Table(shown, "IoU of kept channels with reference sub-networks (95% interval over tasks)", notes)

    def __str__(self) -> str:
        return str(self._by_unit())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._by_unit()._repr_html_()

    def plot(self, path: Path | None = None) -> "Figure":
        """IoU with the references against depth, in the style of MVP's Fig. 7."""
        from zoo.plots import plot_against

        return plot_against(self, path)


def _unit(unit: Unit) -> dict[str, Any]:
    return {"name": unit.name, "kind": unit.kind, "depth": unit.depth, "third": THIRDS[unit.third], "block": unit.block,
            "layers": ", ".join(unit.layers), "n": unit.n}  # fmt: skip


def _interval(mean: float, low: float, high: float) -> str:
    return "-" if np.isnan(mean) else f"{cell(float(mean))} [{cell(float(low))}, {cell(float(high))}]"


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
