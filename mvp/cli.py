"""The command `mvp`: pretrain, prune, populate, vote, finetune, compare, demo, producers; one function each."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError, ZooError

if TYPE_CHECKING:
    from mvp.data import Data
    from zoo import Base, SubNetwork, Zoo


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one clear line about bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        args.run(args)
    except ZooError as error:
        sys.stderr.write(f"mvp {args.command}: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mvp", description="Prune a base for many tasks, vote, fine-tune.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=f"example: {example}",
            formatter_class=argparse.RawTextHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "pretrain", _pretrain, "Train a base on a data set; resumes after a kill.",
        "mvp pretrain resnet20 --dataset cifar100 --root data/cifar100 --out resnet20.safetensors --epochs 20",
    )  # fmt: skip
    sub.add_argument("base", help="registered architecture, e.g. resnet20")
    _data_options(sub)
    sub.add_argument("--out", required=True, help="safetensors file to write; beside it a .ckpt is kept for resuming")
    sub.add_argument("--epochs", type=int, default=20)
    sub.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd for CNNs, adamw for ViTs")
    sub.add_argument("--lr", type=float, help="peak learning rate; 0.1 (sgd) or 0.001 (adamw) by default")
    sub.add_argument("--batch-size", type=int, default=128)
    _run_options(sub)

    sub = command(
        "prune", _prune, "Prune a base for one task and add the sub-network to a zoo.",
        "mvp prune my.zoo --base resnet20 --weights resnet20.safetensors --dataset cifar100 --root data/cifar100 \\\n"
        "    --classes dolphin,whale,seal,otter,beaver --producer ifp --keep 0.3 --option steps=300",
    )  # fmt: skip
    _zoo_options(sub)
    _data_options(sub)
    _producer_options(sub)
    sub.add_argument("--classes", required=True, help="class names, comma-separated")
    _run_options(sub)

    sub = command(
        "populate", _populate, "Prune a base for many tasks; a second start goes on where the first was stopped.",
        "mvp populate my.zoo --base resnet20 --weights resnet20.safetensors --dataset cifar100 \\\n"
        "    --root data/cifar100 --tasks 60 --draw related --keep 0.3 --option steps=300",
    )  # fmt: skip
    _zoo_options(sub)
    _data_options(sub)
    _producer_options(sub)
    sub.add_argument("--tasks", type=int, default=60, help="number of tasks")
    sub.add_argument("--n-classes", type=int, default=5, help="classes a task")
    sub.add_argument(
        "--draw", choices=("random", "related"), default="random",
        help="random: as in the paper; related: also families and WordNet neighbourhoods, so that similarities spread",
    )  # fmt: skip
    sub.add_argument(
        "--shard", metavar="I/N",
        help="only the I-th of N parts of the tasks (1/2, 2/2), for several processes on one zoo; the LEEP of all\n"
        "pairs is then left to a last run without --shard",
    )  # fmt: skip
    _run_options(sub)

    sub = command(
        "vote", _vote, "Find the nearest tasks, vote, fine-tune, add the result.",
        "mvp vote my.zoo --dataset cifar100 --root data/cifar100 --classes apple,pear,orange,rose,tulip -k 3 --by wup",
    )  # fmt: skip
    _zoo_options(sub)
    _data_options(sub)
    sub.add_argument("--classes", required=True, help="class names, comma-separated")
    sub.add_argument("-k", type=int, default=3, help="number of voters")
    sub.add_argument("--by", default="wup", help="similarity measure: wup, leep, prototype")
    sub.add_argument("--keep", type=float, help="keep ratio; the voters' own by default")
    sub.add_argument("--tau", type=float, default=0.1, help="temperature of the vote; 0 takes the most votes")
    sub.add_argument("--steps", type=int, default=100, help="fine-tuning steps")
    _run_options(sub)

    sub = command(
        "finetune", _finetune, "Fine-tune a stored sub-network and add the result.",
        "mvp finetune my.zoo 3fa9c2d1 --dataset cifar100 --root data/cifar100 --steps 100",
    )  # fmt: skip
    sub.add_argument("zoo")
    sub.add_argument("id", help="id of the sub-network, or its first characters")
    _data_options(sub)
    sub.add_argument("--steps", type=int, default=100)
    sub.add_argument("--lr", type=float)
    _run_options(sub)

    sub = command(
        "compare", _compare, "Fine-tune voted, far and random starts equally on held-out tasks; table, CSV and plot.",
        "mvp compare my.zoo --dataset cifar100 --root data/cifar100 --tasks 10 --seeds 3 --long 300 --out runs/compare",
    )  # fmt: skip
    sub.add_argument("zoo")
    _data_options(sub)
    sub.add_argument("--tasks", type=int, default=10, help="held-out tasks, drawn at random by --seed")
    sub.add_argument("--n-classes", type=int, default=5, help="classes a task")
    sub.add_argument("--seeds", type=int, default=3, help="seeds a task")
    sub.add_argument("--by", default="wup", help="similarity measure: wup, leep, prototype")
    sub.add_argument("--steps", default=(10, 30, 100), type=_numbers, help="when accuracy is measured, e.g. 10,30,100")
    sub.add_argument("--long", type=int, metavar="J", help="also prune each task with IFP for J steps")
    sub.add_argument("--out", help="folder for runs.csv and starts.png")
    _run_options(sub)
    sub.set_defaults(seed=1000)

    sub = command(
        "demo", _demo, "The whole path on the sample zoo: query, IoU by depth, vote, compare, add. No download.",
        "mvp demo --out runs/demo",
    )  # fmt: skip
    sub.add_argument("--out", help="folder for plots and the writable copy of the zoo; a new temporary one by default")
    _run_options(sub)

    sub = command("producers", _producers, "List the installed producers.", "mvp producers")
    sub.add_argument("--json", action="store_true")
    return parser


def _zoo_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("zoo", help="folder of the zoo")
    sub.add_argument(
        "--base", help="a base of the zoo by name or id, else timm:NAME, torchvision:NAME or a registered name;\n"
        "the zoo's own when it has one",
    )  # fmt: skip
    sub.add_argument("--weights", help="weights file of the base, or 'published' to download them")


def _data_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dataset", required=True, help="name of the data set, e.g. cifar100, digits, image_folder")
    sub.add_argument("--root", help="its folder")


def _producer_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--producer", default="ifp", help="see `mvp producers`")
    sub.add_argument("--keep", type=float, default=0.1, help="keep ratio (1 - pruning ratio)")
    sub.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the producer")
    sub.add_argument(
        "--sources", type=int, default=0, metavar="N",
        help="source tasks to draw from the data set's other classes, for producers that need them",
    )  # fmt: skip


def _run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", help="cpu or cuda; CUDA when there is one by default")


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


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


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


def _pretrain(args: argparse.Namespace) -> None:
    from mvp.pretrain import pretrain

    logging.getLogger("mvp").setLevel(logging.INFO)
    top1 = pretrain(
        args.base, _data(args), args.out, epochs=args.epochs, optimizer=args.optimizer, lr=args.lr,
        batch_size=args.batch_size, seed=args.seed, device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{args.out}: {args.base}, test accuracy {top1:.4f}\n")


def _prune(args: argparse.Namespace) -> None:
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


def _populate(args: argparse.Namespace) -> None:
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


def _vote(args: argparse.Namespace) -> None:
    import zoo
    from mvp.finetune import finetune
    from mvp.score import score
    from mvp.vote import vote

    data, z = _task_data(args), zoo.open(args.zoo, create=False)
    base = _base(args, z)
    if args.by in ("leep", "prototype"):
        score(z, data, by=args.by, base=base.id, device=args.device)
    sub = vote(z, data, k=args.k, by=args.by, keep=args.keep, tau=args.tau, seed=args.seed, base=base.id)
    sub = finetune(sub, data, steps=args.steps, device=args.device)
    z.add(sub)
    _show([z.get(p) for p in sub.parents], "voters")
    _show([sub], f"added to {args.zoo}")


def _finetune(args: argparse.Namespace) -> None:
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


def _compare(args: argparse.Namespace) -> None:
    from pathlib import Path

    import zoo
    from mvp.compare import compare
    from mvp.data import draw_tasks
    from mvp.score import score

    z, source = zoo.open(args.zoo, create=False), _data(args)
    drawn = draw_tasks(source.labels, args.tasks, n_classes=args.n_classes, seed=args.seed)
    tasks = [source.subset(labels, seed=args.seed) for labels in drawn]
    if args.by in ("leep", "prototype"):
        for data in tasks:
            score(z, data, by=args.by, device=args.device)
    result = compare(
        z, tasks, by=args.by, steps=args.steps, seeds=range(args.seeds), long_steps=args.long,
        device=args.device,
    )  # fmt: skip
    sys.stdout.write(f"{result}\n")
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        result.to_pandas().to_csv(folder / "runs.csv", index=False)
        result.plot(str(folder / "starts.png"))
        sys.stdout.write(f"{folder}: runs.csv, starts.png\n")


def _demo(args: argparse.Namespace) -> None:
    from mvp.demo import demo

    demo(out=args.out, seed=args.seed, device=args.device)


def _producers(args: argparse.Namespace) -> None:
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
    from rich.table import Table

    table = Table("name", "removes", "needs", "paper", "options")
    for row in rows:
        table.add_row(
            row["name"], row["kind"], row["needs"], row["paper"],
            ", ".join(f"{k}={v}" for k, v in row["options"].items()),
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
