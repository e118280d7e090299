"""The command `zoo`: look into a zoo, query it, run its study, check it.

Every command takes --json. A mistake ends with one line on standard error and exit code 2; `zoo verify` ends with 1
where it finds damage.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from zoo.errors import OptionError, ZooError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.handle import Zoo

BAD_INPUT, DAMAGED = 2, 1
_MEASURES = (
    "wup", "leep", "leep_probe", "nce", "logme", "hscore", "prototype", "stamp", "task2vec", "mask_iou",
)  # fmt: skip
_PATH = "folder or URL of a zoo, or the word `sample` for the one that ships with the project"


class _Parser(argparse.ArgumentParser):
    """Ends a bad command line with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (try `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 (`verify` found damage) or 2 (bad input).
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ZooError as error:
        return _complain(str(error))
    except BrokenPipeError:
        # The reader (`| head`) has enough; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))


def _complain(message: str) -> int:
    first, *rest = message.splitlines()
    for line in rest:
        # The problems of an error are a list, its hint a sentence.
        first += f"; {line.strip()[2:]}" if line.strip().startswith("- ") else f". {line.strip()}"
    sys.stderr.write(f"zoo: {first}\n")
    return BAD_INPUT


def _parser() -> _Parser:
    from zoo import __version__

    parser = _Parser(
        prog="zoo", description="Find and study pruned sub-networks.", epilog="zoo nearest --help shows more"
    )
    parser.add_argument("--version", action="version", version=f"mvp-zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        one.add_argument("path", metavar="PATH", help=_PATH)
        one.add_argument("--json", action="store_true", help="print JSON")
        one.add_argument("--version", dest="token", metavar="TOKEN", help="look at this version, such as b1-c40-s12-t9")
        one.set_defaults(run=run)
        return one

    one = command("ls", _ls, "List the sub-networks of a zoo.", "zoo ls sample --limit 10")
    one.add_argument("--limit", type=_count, default=50, help="at most this many, the newest (default 50; 0 = all)")
    one = command("show", _show, "Show one sub-network, or the zoo itself.", "zoo show sample 3fa94c1b")
    one.add_argument("id", metavar="ID", nargs="?", help="id of a sub-network, or its first characters")
    one = command(
        "nearest", _nearest, "Find the sub-networks of the nearest tasks.",
        "zoo nearest sample --labels dolphin,whale,seal,otter,beaver --dataset cifar100 -k 5 --by wup",
    )  # fmt: skip
    asked = one.add_mutually_exclusive_group(required=True)
    asked.add_argument("--labels", type=_words, help="class names, comma-separated")
    asked.add_argument("--like", metavar="ID", help="id of a stored sub-network or task")
    one.add_argument("--dataset", help="data set of the labels")
    one.add_argument("--synsets", type=_words, help="WordNet nouns of the labels (dog.n.01 or wnids), comma-separated")
    one.add_argument("-k", type=int, default=5, help="how many (default 5)")
    one.add_argument("--by", choices=_MEASURES, default="wup", help="measure (default wup)")
    one.add_argument("--base", help="only of this base: id or name")
    one.add_argument("--producer", help="only of this producer")
    one.add_argument("--where", metavar="SQL", help='only those that meet a condition, such as "accuracy > 0.7"')
    one.add_argument("--exclude", choices=("same_classes", "same_task", "overlap", "none"), default="same_classes")
    one.add_argument("--per-task", type=_count, default=1, help="at most this many a task (default 1; 0 = all)")
    one = command(
        "iou", _iou, "IoU of kept channels by depth and similarity.", "zoo iou sample --by wup --out plot.png"
    )  # fmt: skip
    one.add_argument("--by", choices=_MEASURES, default="wup", help="measure (default wup)")
    one.add_argument("--groups", type=int, default=5, help="similarity groups (default 5)")
    one.add_argument("--binning", choices=("equal_width", "quantile"), default="equal_width")
    one.add_argument("--per", choices=("axis", "layer", "block"), default="axis", help="one row a what (default axis)")
    one.add_argument("--base", help="only of this base: id or name")
    one.add_argument("--producer", help="only of this producer")
    one.add_argument("--keep", type=float, help="only of this keep ratio")
    one.add_argument("--exclude", choices=("same_classes", "same_task", "overlap", "none"), default="same_classes")
    one.add_argument("--bootstrap", type=int, default=1000, help="resamples for the intervals (default 1000)")
    one.add_argument("--out", metavar="FILE", help="also draw it: .png, .pdf or .svg")
    one = command(
        "sql", _sql, "Run one SELECT over subnetworks, tasks, bases, scores.",
        'zoo sql sample "select producer, avg(accuracy) from subnetworks group by 1"',
    )  # fmt: skip
    one.add_argument("query", metavar="QUERY", help="one SELECT statement")
    one.add_argument("--param", action="append", default=[], metavar="VALUE", help="value of the next ? (repeat it)")
    one = command(
        "recall", _recall,
        "How many of the nearest by LEEP `mvp search` would find: each stored task is left out in turn.",
        "zoo recall sample -k 5",
    )  # fmt: skip
    one.add_argument("-k", type=int, default=5, help="how many nearest are looked for")
    one.add_argument("--passes", type=_counts, default=(6, 10, 16, 24, 32), help="numbers of forward passes: 6,10,16")
    command("verify", _verify, "Check every byte of a zoo; exit code 1 where it is damaged.", "zoo verify my.zoo")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of at least 0")
    return int(text)


def _open(arguments: argparse.Namespace) -> "Zoo":
    import zoo

    if arguments.path == "sample":
        shipped = zoo.sample()
        if arguments.token is None:
            return shipped
        return zoo.open(shipped.path, arguments.token)
    return zoo.open(arguments.path, arguments.token, create=False, read_only=True)


# Commands ------------------------------------------------------------------------------------------------------------


def _ls(arguments: argparse.Namespace) -> int:
    z = _open(arguments)
    columns = ["id", "producer", "keep", "dataset", "labels", "accuracy", "params", "macs", "generation", "created_at"]
    table = z.snapshot().subnetworks.select(columns)
    total = len(table)
    rows = (table.slice(max(0, total - arguments.limit)) if arguments.limit else table).to_pylist()
    if arguments.json:
        return _json(rows)
    for row in rows:
        row["id"], row["created_at"] = row["id"][:12], row["created_at"].strftime("%Y-%m-%d %H:%M")
    _table(rows, columns, title=f"{z!r}")
    if len(rows) < total:
        _say(f"the newest {len(rows)} of {total}; --limit 0 lists all")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    z = _open(arguments)
    if arguments.id is None:
        return _show_zoo(z, as_json=arguments.json)
    snapshot = z.snapshot()
    row = snapshot.row(snapshot.find(arguments.id))
    for name in ("channels", "metrics", "embeddings", "kept_tokens", "checksums"):
        row[name] = dict(row[name])
    if arguments.json:
        return _json({**row, "options": json.loads(row["options"])})
    axes = z.base(row["base_id"]).plan["axes"]
    row["channels"] = ", ".join(
        f"{key} {len(kept)}/{axes[key.partition('@')[0]]['n']}" for key, kept in row["channels"].items()
    )
    row["embeddings"] = ", ".join(f"{name} ({len(vector)})" for name, vector in row["embeddings"].items())
    row["labels"] = [f"{label} ({synset or 'unmapped'})" for label, synset in zip(row["labels"], row.pop("synsets"))]
    del row["checksums"]
    _table([{"field": name, "value": value} for name, value in row.items()], ["field", "value"])
    return 0


def _show_zoo(z: "Zoo", *, as_json: bool) -> int:
    snapshot = z.snapshot()
    bases = snapshot.bases.select(["id", "name", "num_classes", "created_at"]).to_pylist()
    counts = {name: len(getattr(snapshot, name)) for name in ("subnetworks", "tasks", "bases", "scores")}
    if as_json:
        return _json({"path": z.path, "version": snapshot.token, "counts": counts, "bases": bases})
    _say(repr(z))
    _table(bases, ["id", "name", "num_classes", "created_at"], title="bases")
    return 0


def _nearest(arguments: argparse.Namespace) -> int:
    from zoo.records import Task

    z = _open(arguments)
    if arguments.like:
        if arguments.dataset or arguments.synsets:
            raise OptionError("--dataset and --synsets go with --labels, not with --like")
        task: Any = arguments.like
    else:
        task = Task(labels=arguments.labels, dataset=arguments.dataset, synsets=arguments.synsets)
    found = z.nearest(
        task, k=arguments.k, by=arguments.by, base=arguments.base, producer=arguments.producer, where=arguments.where,
        exclude=None if arguments.exclude == "none" else arguments.exclude, per_task=arguments.per_task or None,
    )  # fmt: skip
    if arguments.json:
        return _json(found.table().rows())
    _say(str(found))
    return 0


def _recall(arguments: argparse.Namespace) -> int:
    from zoo.landmarks import recall

    _say(str(recall(_open(arguments).snapshot(), k=arguments.k, passes=arguments.passes)))
    return 0


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _iou(arguments: argparse.Namespace) -> int:
    study = _open(arguments).iou_by_depth(
        by=arguments.by, groups=arguments.groups, binning=arguments.binning, per=arguments.per, base=arguments.base,
        producer=arguments.producer, keep=arguments.keep, bootstrap=arguments.bootstrap,
        exclude=None if arguments.exclude == "none" else arguments.exclude,
    )  # fmt: skip
    if arguments.out:
        study.plot(arguments.out)
    if arguments.json:
        return _json({"about": dict(study.about), "rows": study.table().rows(), "gap": study.gap.rows()})
    _say(str(study))
    if arguments.out:
        _say(f"drawn in {arguments.out}")
    return 0


def _sql(arguments: argparse.Namespace) -> int:
    import duckdb

    try:
        relation = _open(arguments).sql(arguments.query, arguments.param or None)
        columns = list(relation.columns)
        rows = [dict(zip(columns, row)) for row in relation.fetchall()]
    except duckdb.Error as error:
        raise OptionError("sql: DuckDB stopped the query", got=" ".join(str(error).split())[:240]) from error
    if arguments.json:
        return _json(rows)
    _table(rows, columns)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    report = _open(arguments).verify()
    if arguments.json:
        _json({"ok": report.ok, "problems": report.problems, "notes": report.notes, "counts": report.counts})
    else:
        _say(str(report))
    return 0 if report.ok else DAMAGED


# Output --------------------------------------------------------------------------------------------------------------


def _console() -> "Console":
    from rich.console import Console

    # Not a terminal: nothing is cut to a width that nobody has.
    return Console() if sys.stdout.isatty() else Console(width=220)


def _say(text: str) -> None:
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str | None = None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for name in columns:
        number = all(row[name] is None or isinstance(row[name], int | float) for row in rows)
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        # As Text: a label such as "[red]" is no markup.
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    _console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}={_cell(v)}" for k, v in value.items())
    # Stored text may hold control codes, which a terminal would obey.
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _json(value: Any) -> int:
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")
    return 0


def _plain(value: Any) -> Any:
    """A value as JSON has it: nan and infinities as null, times in ISO 8601, numpy numbers as numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


if __name__ == "__main__":
    sys.exit(main())
