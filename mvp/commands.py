"""What each command of `mvp` does with its arguments; the parser is `cli.py`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError

if TYPE_CHECKING:
    from mvp.data import Data
    from zoo import Base, SubNetwork, Zoo


def _data(args: argparse.Namespace) -> "Data":
    from mvp.datasets import load

    return load(args.dataset, args.root)


def _classes(args: argparse.Namespace) -> list[str]:
    return [c.strip() for c in args.classes.split(",")]


def _task_data(args: argparse.Namespace) -> "Data":
    return _data(args).subset(_classes(args))


def _base(args: argparse.Namespace, z: "Zoo") -> "Base":
    from mvp.bases import load_base

    stored = [b for b in z.bases() if args.base and (args.base == b.name or b.id.startswith(args.base))]
    if args.base is None or (stored and args.weights is None):
        return z.base(args.base)
    return load_base(args.base, weights=True if args.weights == "published" else args.weights, seed=args.seed)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = {}
    for pair in args.option:
        name, equals, value = pair.partition("=")
        if not equals:
            raise OptionError("--option", got=pair, expected="NAME=VALUE, e.g. steps=300")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _shard(text: str | None) -> tuple[int, int]:
    i, _, n = (text or "1/1").partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise OptionError("--shard", got=text, expected="I/N with 1 <= I <= N, e.g. 1/2")
    return int(i) - 1, int(n)


def _show(subs: "Sequence[SubNetwork]", title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "producer", "task", "keep", "params", "MACs", "accuracy", title=title, title_justify="left")
    for sub in subs:
        accuracy = "-" if sub.accuracy is None else f"{sub.accuracy:.3f}"
        table.add_row(
            sub.id[:12], sub.producer, ", ".join(sub.task.labels), f"{sub.keep:g}", f"{sub.params:,}", f"{sub.macs:,}",
            accuracy,
        )  # fmt: skip
    Console().print(table)


def run_pretrain(args: argparse.Namespace) -> None:
    """Trains a base and says its accuracy."""
    from mvp.pretrain import pretrain

    logging.getLogger("mvp").setLevel(logging.INFO)
    top1 = pretrain(
        args.base, _data(args), args.out, method=args.method, epochs=args.epochs, optimizer=args.optimizer, lr=args.lr,
        batch_size=args.batch_size, seed=args.seed, device=args.device,
    )  # fmt: skip
    measured = "test" if args.method == "supervised" else "k-NN"
    sys.stdout.write(f"{args.out}: {args.base}, {measured} accuracy {top1:.4f}\n")


def run_meta_train(args: argparse.Namespace) -> None:
    """Meta-trains a mask generator and says where the loss went."""
    from mvp.bases import load_base
    from mvp.producers.stamp_train import meta_train

    logging.getLogger("mvp").setLevel(logging.INFO)
    options = {**_options(args), **({"frozen": True} if args.frozen else {})}
    weights = True if args.weights == "published" else args.weights
    base = args.base if weights is None else load_base(args.base, weights=weights)
    curve = meta_train(
        base, _data(args), args.out, config=args.config, splits=args.splits, seed=args.seed, device=args.device,
        **options,
    )  # fmt: skip
    tenth = max(1, len(curve.error) // 10)
    first, last = (sum(part) / tenth for part in (curve.error[:tenth], curve.error[-tenth:]))
    sys.stdout.write(f"{args.out}: {args.base}, cross-entropy {first:.3f} -> {last:.3f}\n")


def run_prune(args: argparse.Namespace) -> None:
    """Prunes for one task and adds the sub-network."""
    import zoo
    from mvp.populate import draw_sources
    from mvp.producers import prune

    options, source = _options(args), _data(args)
    data, z = source.subset(_classes(args)), zoo.open(args.zoo)
    sub = prune(
        _base(args, z), data, producer=args.producer, keep=args.keep, seed=args.seed, device=args.device,
        sources=draw_sources(source, data.labels, args.sources, seed=args.seed), **options,
    )  # fmt: skip
    z.add(sub)
    _show([sub], f"added to {args.zoo}")


def run_populate(args: argparse.Namespace) -> None:
    """Prunes for many tasks."""
    import zoo
    from mvp.data import draw_tasks
    from mvp.populate import draw_related, populate

    options, (part, parts), source = _options(args), _shard(args.shard), _data(args)
    if args.draw == "related":
        tasks = draw_related(
            source.labels, args.tasks, dataset=source.dataset, n_classes=args.n_classes, seed=args.seed
        )
    else:
        tasks = draw_tasks(source.labels, args.tasks, n_classes=args.n_classes, seed=args.seed)
    tasks = tasks[part::parts]
    if not tasks:
        raise OptionError("no tasks to prune for", got=f"--tasks {args.tasks} --shard {args.shard or '1/1'}")
    z = zoo.open(args.zoo)
    base = _base(args, z)
    ids = populate(
        z, base, source, tasks, producer=args.producer, keep=args.keep, seed=args.seed, sources=args.sources,
        leep=args.shard is None, device=args.device, **options,
    )  # fmt: skip
    accuracies = [sub.accuracy or 0.0 for sub in map(z.get, ids)]
    sys.stdout.write(
        f"{args.zoo}: {len(set(ids))} sub-networks of {base.name}, mean accuracy {sum(accuracies) / len(ids):.3f}, "
        f"version {z.version}\n"
    )


def run_vote(args: argparse.Namespace) -> None:
    """Votes, fine-tunes, adds the result."""
    import zoo
    from mvp.finetune import finetune
    from mvp.score import SCORED, score
    from mvp.trust import trust
    from mvp.vote import vote

    data, z = _task_data(args), zoo.open(args.zoo, create=False)
    base = _base(args, z)
    if args.by in SCORED:
        score(z, data, by=args.by, base=base.id, generator=args.generator, device=args.device)
    limits = {"macs": args.macs, "params": args.params}
    sub = vote(
        z, data, k=args.k, by=args.by, keep=args.keep, tau=args.tau, seed=args.seed, base=base.id, ballot=args.ballot,
        quorum=args.quorum, weights=args.weigh, multiple=args.multiple, abstain=args.abstain,
        budget={name: n for name, n in limits.items() if n is not None} or None,
    )  # fmt: skip
    sys.stdout.write(f"{trust(z, sub, steps=args.steps)}\n")
    sub = finetune(sub, data, steps=args.steps, device=args.device)
    z.add(sub)
    _show([z.get(p) for p in sub.parents], "voters")
    _show([sub], f"added to {args.zoo}")


def run_responses(args: argparse.Namespace) -> None:
    """Fills the response cache and says how far off LEEP from it is."""
    import zoo
    from mvp.responses import cache_responses

    z = zoo.open(args.zoo, create=False)
    report = cache_responses(z, _data(args), images=args.images, base=args.base, seed=args.seed, device=args.device)
    sys.stdout.write(f"{report}\n")


def run_search(args: argparse.Namespace) -> None:
    """Finds the nearest by LEEP with few forward passes."""
    import zoo
    from mvp.search import search

    z = zoo.open(args.zoo, create=False)
    found = search(
        z, _task_data(args), k=args.k, passes=args.passes, base=args.base, images=args.images, seed=args.seed,
        device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{found}\n")


def run_measure(args: argparse.Namespace) -> None:
    """Measures latencies and shows them, fastest first."""
    import zoo
    from mvp.latency import MEASURE, device_name, measure
    from zoo.table import text_table

    z = zoo.open(args.zoo, create=False)
    measure(z, batch=args.batch, base=args.base, where=args.where, device=args.device, threads=args.threads)
    name = device_name(args.device, args.threads)
    rows = z.sql(
        "select s.id, s.producer, s.keep, s.macs, s.accuracy, x.value from subnetworks s "
        "join scores x on x.source = s.id where x.measure = ? and x.target = ? and x.device = ? "
        "order by x.value, s.id limit 20",
        [MEASURE, f"batch={args.batch}", name],
    ).fetchall()
    columns = dict(zip(("id", "producer", "keep", "MACs", "accuracy", "ms"), zip(*rows)))
    columns["id"] = tuple(i[:12] for i in columns.get("id", ()))
    sys.stdout.write(text_table(columns, title=f"latency of {args.batch} image(s), {name}; the fastest") + "\n")


def run_finetune(args: argparse.Namespace) -> None:
    """Fine-tunes a stored sub-network and adds the result."""
    import zoo
    from mvp.finetune import finetune

    z = zoo.open(args.zoo, create=False)
    sub = z.get(args.id)
    trained = finetune(
        sub, _data(args).subset(sub.task.labels, seed=sub.task.seed), steps=args.steps, lr=args.lr, seed=args.seed,
        device=args.device,
    )  # fmt: skip
    z.add(trained)
    _show([sub, trained], f"added to {args.zoo}")


def run_compare(args: argparse.Namespace) -> None:
    """Compares starts on held-out tasks."""
    from pathlib import Path

    import zoo
    from mvp.compare import compare
    from mvp.data import draw_tasks
    from mvp.score import SCORED, score

    z, source = zoo.open(args.zoo, create=False), _data(args)
    drawn = draw_tasks(source.labels, args.tasks, n_classes=args.n_classes, seed=args.seed)
    tasks = [source.subset(labels, seed=args.seed) for labels in drawn]
    if args.by in SCORED:
        for data in tasks:
            score(z, data, by=args.by, generator=args.generator, device=args.device)
    folder = Path(args.out) if args.out else None
    result = compare(
        z, tasks, by=args.by, steps=args.steps, seeds=range(args.seeds), long_steps=args.long,
        out=folder and folder / "runs.csv", device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{result}\n")
    if folder:
        result.plot(str(folder / "starts.png"))
        sys.stdout.write(f"{folder}: runs.csv, starts.png\n")


def run_contest(args: argparse.Namespace) -> None:
    """Compares producers on equal terms."""
    from pathlib import Path

    from mvp.bases import load_base
    from mvp.contest import Entry, contest, everyone
    from mvp.data import draw_tasks

    source = _data(args)
    base = load_base(args.base, weights=True if args.weights == "published" else args.weights)
    entries = [Entry.parse(text) for text in args.entry] if args.entry else everyone(base)
    folder = Path(args.out) if args.out else None
    result = contest(
        base, source, draw_tasks(source.labels, args.tasks, n_classes=args.n_classes, seed=args.seed), entries,
        keep=args.keep, steps=args.steps, seeds=range(args.seeds), sources=args.sources,
        out=folder and folder / "runs.csv", device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{result}\n")
    if folder:
        result.plot(str(folder / "producers.png"))
        sys.stdout.write(f"{folder}: runs.csv, producers.png\n")


def run_measures(args: argparse.Namespace) -> None:
    """Correlates measures of similarity with what votes by them give."""
    from pathlib import Path

    import zoo
    from mvp.data import draw_tasks
    from mvp.rank import rank
    from mvp.score import OF_SUBNETWORKS, OF_TASKS, SCORED, embed_stored, score
    from mvp.vote import PRUNED

    z, source = zoo.open(args.zoo, create=False), _data(args)
    drawn = draw_tasks(source.labels, args.tasks, n_classes=args.n_classes, seed=args.seed)
    tasks = [source.subset(labels, seed=args.seed) for labels in drawn]
    names = args.by.split(",") if args.by else ["wup", *(m for m in SCORED if m != "stamp" or args.generator)]
    some = {"images": args.images, "seed": args.seed, "device": args.device}
    for name in [m for m in names if m in OF_TASKS]:
        embed_stored(z, source, by=name, **some)
    for data in tasks:
        if passes := [m for m in names if m in OF_SUBNETWORKS or m in OF_TASKS]:
            score(z, data, by=passes, where=PRUNED, **some)
        if "stamp" in names:
            score(z, data, by="stamp", generator=args.generator, device=args.device)
    folder = Path(args.out) if args.out else None
    result = rank(
        z, tasks, by=names, optional=not args.by, k=args.k, groups=args.groups, steps=args.steps,
        seeds=range(args.seeds), keep=args.keep, out=folder and folder / "runs.csv", device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{result}\n")
    if folder:
        result.plot(folder / "measures.png")
        sys.stdout.write(f"{folder}: runs.csv, measures.png\n")


def run_demo(args: argparse.Namespace) -> None:
    """Runs the demo."""
    from mvp.demo import demo

    demo(out=args.out, seed=args.seed, device=args.device)


def run_producers(args: argparse.Namespace) -> None:
    """Lists the producers."""
    import dataclasses

    from mvp.producers import producers

    rows = [
        {
            "name": name, "kind": member.kind, "needs": member.needs, "paper": member.paper, "widths": member.widths,
            "options": {f.name: f.default for f in dataclasses.fields(member)},
        }
        for name, member in producers().items()
    ]  # fmt: skip
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    meaning = {
        "equal": "keep: share of every axis", "budget": "keep: MACs of equal widths",
        "learned": "keep: recorded only", "full": "keep: share of the weights",
    }  # fmt: skip
    table = Table("producer", "what it is, and its options with their defaults", show_lines=True)
    for row in rows:
        facts = f"{row['paper']}\nremoves {row['kind']}; needs {row['needs']}; {meaning[row['widths']]}"
        options = "  ".join(f"{k}={v}" for k, v in row["options"].items())
        table.add_row(row["name"], facts + (f"\n[dim]{escape(options)}[/dim]" if options else ""))
    Console().print(table)
