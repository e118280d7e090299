"""The figures of the studies. Matplotlib's object API throughout: no global state, nothing opens a window.

Each function returns a Figure (notebooks show it by themselves) and saves it where `path` says, in the format that the
path's ending names.
"""

from collections.abc import Collection, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from zoo.channels import Floats
from zoo.cohort import require_channels, require_one
from zoo.errors import EmptyZooError, OptionError
from zoo.finding import find_rows
from zoo.rows import Rows, Snapshot
from zoo.units import Unit, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zoo.study import Against, Study

Path = str | PathLike[str]

# Okabe & Ito 2008: told apart under all common kinds of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vPX*"
LAYERS_A_ROW = 20
FLOOR_LABEL = "random sets (expected)"


def plot_study(study: "Study", path: Path | None = None) -> "Figure":
    """IoU against depth, one line and 95% band a similarity group, dashed floor; for blocks one panel a kind.

    Style of MVP's Fig. 1 (layers of a ResNet) and Fig. 2 (blocks of a ViT).
    """
    panels = _panels(study.units)
    figure, every = _figure(len(panels))
    for ax, (kind, rows) in zip(every, panels.items()):
        units = [study.units[u] for u in rows]
        x = _x(units, study.per)
        # From blue (most similar) to yellow-green: even lightness steps, readable in grey too.
        for g, colour in enumerate(_ramp(study.groups)):
            e = study.iou
            name = {0: "1 (most similar)", study.groups - 1: f"{study.groups} (least similar)"}.get(g, str(g + 1))
            _line(ax, x, e.mean[rows, g], e.low[rows, g], e.high[rows, g], colour, MARKERS[g % len(MARKERS)], name)
        _floor(ax, x, study.floor[rows])
        _label(ax, units, study.per, "IoU of kept channels", kind if len(panels) > 1 else "")
        _zero_based(ax)
    measure = f"{study.about['by']}, {study.about['binning'].replace('_', ' ')} groups"
    _legend_beside(figure, every, f"similarity group\n({measure})")
    return _done(figure, path)


def plot_gap(study: "Study", path: Path | None = None) -> "Figure":
    """IoU of group 1 minus IoU of the last group against depth with 95% intervals, in the style of MVP's Fig. 6."""
    panels = _panels(study.units)
    figure, every = _figure(len(panels))
    for ax, (kind, rows) in zip(every, panels.items()):
        units = [study.units[u] for u in rows]
        x, e = _x(units, study.per), study.unit_gap
        mean, low, high = e.mean[rows, 0], e.low[rows, 0], e.high[rows, 0]
        ax.axhline(0, color="0.4", linewidth=1)
        ax.errorbar(x, mean, np.stack([mean - low, high - mean]), color=COLOURS[0], marker="o", markersize=5,
                    linewidth=1.8, elinewidth=1.2, capsize=3)  # fmt: skip
        _label(ax, units, study.per, f"IoU of group 1 - group {study.groups}", kind if len(panels) > 1 else "")
    figure.suptitle(f"similarity by {study.about['by']}, 95% intervals over tasks", fontsize=10, color="0.3")
    return _done(figure, path)


def plot_against(against: "Against", path: Path | None = None) -> "Figure":
    """IoU of each set with its references against depth, and the floor, in the style of MVP's Fig. 7."""
    panels = _panels(against.units)
    figure, every = _figure(len(panels))
    for ax, (kind, rows) in zip(every, panels.items()):
        units = [against.units[u] for u in rows]
        x = _x(units, against.per)
        for i, (name, e) in enumerate(against.lines.items()):
            _line(ax, x, e.mean[rows, 0], e.low[rows, 0], e.high[rows, 0], COLOURS[i % len(COLOURS)],
                  MARKERS[i % len(MARKERS)], f"{name} ({against.sizes[name]})")  # fmt: skip
        _floor(ax, x, against.floor[rows])
        _label(ax, units, against.per, "IoU with reference sub-networks", kind if len(panels) > 1 else "")
        _zero_based(ax)
    _legend_beside(figure, every)
    return _done(figure, path)


def plot_channels(
    snapshot: Snapshot, ids: Collection[str], path: Path | None = None, *, names: Sequence[str] | None = None
) -> "Figure":
    """Indices of the kept channels at each layer, sub-networks side by side, in the style of STAMP's Fig. 5.

    Args:
        snapshot: One state of a zoo.
        ids: 1 to 8 sub-networks of one base and mode; ids or prefixes.
        path: Where to save it; None = nowhere.
        names: What to call them; None = the first classes of their tasks.

    Raises:
        NotFoundError: An id that is not there.
        MixtureError: Several bases or modes.
        EmptyZooError: No ids, or nothing is pruned.
        OptionError: More than eight ids, or another number of names.
    """
    words, units, labels = _kept_of(snapshot, ids, names)
    if len(labels) > len(COLOURS):
        raise OptionError("plot_channels: too many sub-networks side by side", got=len(labels),
                          expected=f"at most {len(COLOURS)}")  # fmt: skip
    # Wide and narrow layers are far apart in a deep network: each row of layers has a scale of its own.
    parts = np.array_split(np.arange(len(units)), -(-len(units) // LAYERS_A_ROW))
    width = max(6.0, 1.6 + len(parts[0]) * (0.25 + 0.11 * len(labels)))
    figure, every = _figure(len(parts), width=width, height=4.6, below=True)
    for ax, part in zip(every, parts):
        _draw_channels(ax, [words[u] for u in part], [units[u] for u in part], labels)
    every[-1].set_xlabel("layer, in forward order")
    figure.supylabel("channel index (grey line: width of the base)", fontsize=10)
    _legend_above(figure, every[0])
    return _done(figure, path)


def _draw_channels(
    ax: "Axes", words: Sequence[Sequence[np.ndarray]], units: Sequence[Unit], labels: Sequence[str]
) -> None:
    from matplotlib.collections import PolyCollection

    step = 0.8 / len(labels)
    for i, label in enumerate(labels):
        left = np.concatenate([np.full(len(kept[i]), u - 0.4 + step * (i + 0.07)) for u, kept in enumerate(words)])
        low = np.concatenate([kept[i] for kept in words])
        right, high = left + step * 0.86, low + 1
        # A channel is one unit high, so that neighbouring kept channels touch and a whole layer is a solid bar.
        corners = np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)
        ax.add_collection(PolyCollection(list(corners), facecolors=COLOURS[i], linewidths=0, label=label))
    for u, unit in enumerate(units):
        ax.plot([u - 0.45, u + 0.45], [unit.n, unit.n], color="0.35", linewidth=1)
    ax.set(xlim=(-0.6, len(units) - 0.4), ylim=(0, max(unit.n for unit in units) * 1.02))
    _layer_ticks(ax, units)


def plot_widths(
    snapshot: Snapshot, ids: Collection[str], path: Path | None = None, *, names: Sequence[str] | None = None
) -> "Figure":
    """Share of channels kept at each layer, one line a sub-network, in the style of LcP's Fig. 3.

    Args:
        snapshot: One state of a zoo.
        ids: Sub-networks of one base and mode; ids or prefixes.
        path: Where to save it; None = nowhere.
        names: What to call them; None = the first classes of their tasks. Beyond eight, lines are grey and the mean is
            drawn.

    Raises:
        NotFoundError: An id that is not there.
        MixtureError: Several bases or modes.
        EmptyZooError: No ids, or nothing is pruned.
    """
    words, units, labels = _kept_of(snapshot, ids, names)
    share = np.array([[len(kept) / unit.n for kept in row] for row, unit in zip(words, units)])
    figure, every = _figure(1, width=max(6.0, 2.0 + 0.32 * len(units)), height=4.0)
    ax, x = every[0], np.arange(len(units))
    many = len(labels) > len(COLOURS)
    if many:
        ax.plot(x, share, color="0.75", linewidth=0.8)
        ax.plot(x, share.mean(axis=1), color=COLOURS[0], marker="o", markersize=5, linewidth=2,
                label=f"mean of {len(labels)}")  # fmt: skip
    else:
        width = 0.8 / len(labels)
        for i, label in enumerate(labels):
            ax.bar(x - 0.4 + width * (i + 0.5), share[:, i], width=width * 0.92, color=COLOURS[i], label=label)
    ax.set(ylim=(0, 1.02), xlim=(-0.6, len(units) - 0.4))
    ax.set_ylabel("share of channels kept")
    _layer_ticks(ax, units)
    ax.set_xlabel("layer, in forward order")
    _legend_above(figure, ax)
    return _done(figure, path)


def _kept_of(
    snapshot: Snapshot, ids: Collection[str], names: Sequence[str] | None
) -> tuple[list[list[np.ndarray]], list[Unit], list[str]]:
    """Kept channels of each layer and sub-network, the layers, and what to call the sub-networks."""
    rows = Rows.of(snapshot)
    which = find_rows(rows, ids)
    if not len(which):
        raise EmptyZooError("no sub-networks to draw", got="no ids", hint="z.nearest(...).id and z.ids() give ids")
    require_channels(rows, which)
    require_one(rows, which, {"base": None, "mode": None})
    base, mode = str(rows.base_ids[which[0]]), str(rows.mode[which[0]])
    stored, packed = rows.packed(base, mode)
    drawn = packed.take(np.searchsorted(stored, which))
    units = units_of(rows.plan(base), drawn, mode, "layer")
    kept = [[drawn.kept(unit.keys[0], i) for i in range(len(which))] for unit in units]
    if names is not None and len(names) != len(which):
        raise OptionError("one name a sub-network", got=f"{len(names)} names for {len(which)} ids")
    labels = list(names) if names is not None else [_short(rows, int(i)) for i in which]
    return kept, units, labels


def _short(rows: Rows, i: int) -> str:
    labels = ", ".join(rows.labels[i][:2]) + (", ..." if len(rows.labels[i]) > 2 else "")
    return f"{rows.producer[i]} {rows.ids[i][:8]}: {labels}"


def _figure(panels: int, width: float = 8.0, height: float = 4.2, below: bool = False) -> tuple["Figure", list["Axes"]]:
    """A figure of panels side by side, or one below the other; width and height are those of a figure of one."""
    from matplotlib.figure import Figure

    across, down = (1, panels) if below else (panels, 1)
    size = (width * (1 if across == 1 else 0.6 * across), height * (1 if down == 1 else 0.7 * down))
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    every = [figure.add_subplot(down, across, 1 + i) for i in range(panels)]
    for ax in every:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, every


def _panels(units: Sequence[Unit]) -> dict[str, list[int]]:
    """Rows of each panel: blocks report heads and nodes apart from both together, everything else is one panel."""
    kinds = {unit.kind for unit in units}
    if "pooled" not in kinds:
        return {"": list(range(len(units)))}
    order = ["pooled", *sorted(kinds - {"pooled"})]
    titles = {"pooled": "heads and nodes together", "head": "heads", "node": "nodes", "filter": "filters"}
    return {titles.get(kind, kind): [u for u, unit in enumerate(units) if unit.kind == kind] for kind in order}


def _x(units: Sequence[Unit], per: str) -> Floats:
    blocks = list(dict.fromkeys(unit.block for unit in units))
    return np.array([blocks.index(unit.block) if per == "block" else unit.depth for unit in units], np.float64)


def _ramp(n: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    return [tuple(colormaps["viridis"](0.12 + 0.76 * i / max(n - 1, 1))) for i in range(n)]  # type: ignore[misc]


def _line(
    ax: "Axes",
    x: Floats,
    mean: Floats,
    low: Floats,
    high: Floats,
    colour: str | tuple[float, ...],
    marker: str,
    label: str,
) -> None:
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)


def _floor(ax: "Axes", x: Floats, floor: Floats) -> None:
    ax.plot(x, floor, color="0.25", linestyle="--", linewidth=1.3, label=FLOOR_LABEL)


def _legend_beside(figure: "Figure", every: Sequence["Axes"], title: str | None = None) -> None:
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right upper", frameon=False, alignment="left")


def _legend_above(figure: "Figure", ax: "Axes") -> None:
    handles, labels = ax.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() // 3.4))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)


def _label(ax: "Axes", units: Sequence[Unit], per: str, y: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    names = {
        "axis": "depth of the axis (mean forward rank of its layers)",
        "layer": "layer (forward rank)",
        "block": "block",
    }
    ax.set_xlabel(names[per])
    ax.set_ylabel(y)
    ax.set_title(title, fontsize=11)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if per == "block" and len(units) <= 16:
        names_of = [unit.block or "" for unit in units]
        short = [name.rpartition(".")[2] for name in names_of]
        unique = len(set(short)) == len(short)
        ax.set_xticks(range(len(units)), short if unique else names_of, rotation=0 if unique else 90)


def _zero_based(ax: "Axes") -> None:
    ax.set_ylim(bottom=0)


def _layer_ticks(ax: "Axes", units: Sequence[Unit]) -> None:
    ax.set_xticks(range(len(units)), [unit.name for unit in units], rotation=90, fontsize=8)
    ax.grid(visible=False, axis="x")


def _done(figure: "Figure", path: Path | None) -> "Figure":
    if path is not None:
        figure.savefig(path)
    return figure
