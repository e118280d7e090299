"""The command `mvp` and its arguments; what each of its commands does is in `commands.py`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from mvp import commands
from zoo.errors import ZooError


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
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=text, description=text, epilog=f"example: {example}",
            formatter_class=argparse.RawTextHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "pretrain", commands.run_pretrain, "Train a base on a data set; resumes after a kill.",
        "mvp pretrain resnet20 --dataset cifar100 --root data/cifar100 --out resnet20.safetensors --epochs 20",
    )  # fmt: skip
    sub.add_argument("base", help="registered architecture, e.g. resnet20")
    _data_options(sub)
    sub.add_argument("--out", required=True, help="safetensors file to write; beside it a .ckpt is kept for resuming")
    sub.add_argument(
        "--method", choices=("supervised", "simsiam"), default="supervised",
        help="simsiam: without labels; says the accuracy of a k-NN on its features",
    )  # fmt: skip
    sub.add_argument("--epochs", type=int, default=20)
    sub.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd for CNNs, adamw for ViTs")
    sub.add_argument(
        "--lr", type=float,
        help="peak learning rate; 0.1 (sgd), 0.03 x batch size / 256 (sgd, simsiam) or 0.001 (adamw) by default",
    )  # fmt: skip
    sub.add_argument("--batch-size", type=int, default=128)
    _run_options(sub)

    sub = command(
        "meta-train", commands.run_meta_train,
        "Meta-train a mask generator for the producer `stamp`; resumes after a kill.",
        "mvp meta-train vgg_narrow --dataset cifar100 --root data/cifar100 --out stamp.safetensors",
    )  # fmt: skip
    sub.add_argument("base", help="timm:NAME, torchvision:NAME or a registered name")
    sub.add_argument("--weights", help="weights file to start from, or 'published'; random ones by default")
    _data_options(sub)
    sub.add_argument(
        "--out", required=True,
        help="safetensors file to write; beside it a .ckpt is kept for resuming, and the meta-trained network is\n"
        "written with the suffix .base.safetensors. Then: mvp prune --base BASE --weights OUT.base.safetensors\n"
        "--producer stamp --option generator=OUT.safetensors ...",
    )  # fmt: skip
    sub.add_argument(
        "--config", choices=("small", "paper"), default="small",
        help="small: 100 iterations, minutes for a narrow network; paper: 2000 larger ones, wants a GPU",
    )  # fmt: skip
    sub.add_argument("--splits", type=int, default=10, help="source tasks: the classes are split into so many")
    sub.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option that differs")
    sub.add_argument(
        "--frozen",
        action="store_true",
        help="leave the base's weights as they are: the generator is then for this base",
    )
    _run_options(sub)

    sub = command(
        "prune", commands.run_prune, "Prune a base for one task and add the sub-network to a zoo.",
        "mvp prune my.zoo --base resnet20 --weights resnet20.safetensors --dataset cifar100 --root data/cifar100 \\\n"
        "    --classes dolphin,whale,seal,otter,beaver --producer ifp --keep 0.3 --option steps=300",
    )  # fmt: skip
    _zoo_options(sub)
    _data_options(sub)
    _producer_options(sub)
    sub.add_argument("--classes", required=True, help="class names, comma-separated")
    _run_options(sub)

    sub = command(
        "populate", commands.run_populate,
        "Prune a base for many tasks; a second start goes on where the first was stopped.",
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
        "vote", commands.run_vote, "Find the nearest tasks, vote, fine-tune, add the result.",
        "mvp vote my.zoo --dataset cifar100 --root data/cifar100 --classes apple,pear,orange,rose,tulip -k 3 --by wup",
    )  # fmt: skip
    _zoo_options(sub)
    _data_options(sub)
    sub.add_argument("--classes", required=True, help="class names, comma-separated")
    sub.add_argument("-k", type=int, default=3, help="number of voters")
    _measure_options(sub)
    sub.add_argument("--keep", type=float, help="keep ratio; the voters' own by default")
    sub.add_argument("--tau", type=float, default=0.1, help="temperature of the vote; 0 takes the most votes")
    sub.add_argument(
        "--ballot", choices=("softmax", "deterministic", "k_of_n", "intersection"), default="softmax",
        help="softmax: drawn, as in the paper; deterministic: the most votes; k_of_n, intersection: what --quorum or\n"
        "all voters keep, as wide as it comes out",
    )  # fmt: skip
    sub.add_argument("--quorum", type=int, metavar="M", help="for k_of_n; more than half of the voters by default")
    sub.add_argument(
        "--weigh", choices=("similarity", "accuracy"), help="voters count by this instead of alike",
    )  # fmt: skip
    limit = sub.add_mutually_exclusive_group()
    limit.add_argument("--macs", type=int, metavar="N", help="widths by vote share per cost, within N MACs an image")
    limit.add_argument("--params", type=int, metavar="N", help="the same within N parameters")
    sub.add_argument("--multiple", type=int, default=1, metavar="M", help="widths are multiples of M, e.g. 8")
    sub.add_argument("--abstain", action="store_true", help="stop when the voters agree no more than random ones")
    sub.add_argument("--steps", type=int, default=100, help="fine-tuning steps")
    _run_options(sub)

    sub = command(
        "responses", commands.run_responses,
        "Run every sub-network once on a probe, so that LEEP of new tasks needs no forward pass.",
        "mvp responses my.zoo --dataset cifar100 --root data/cifar100\n"
        "         zoo nearest my.zoo --labels apple,pear,orange --dataset cifar100 --by leep_probe",
    )  # fmt: skip
    sub.add_argument("zoo")
    sub.add_argument("--base", help="the base when the zoo has several")
    _data_options(sub)
    sub.add_argument("--images", type=int, default=1000, help="images of the probe; 1,000 are 10 KB a sub-network")
    _run_options(sub)

    sub = command(
        "search", commands.run_search,
        "Find the nearest tasks by LEEP, with fewer forward passes than there are sub-networks.",
        "mvp search my.zoo --dataset digits --classes 0,1,2,3,4 -k 3 --passes 24",
    )  # fmt: skip
    sub.add_argument("zoo")
    sub.add_argument("--base", help="the base when the zoo has several")
    _data_options(sub)
    sub.add_argument("--classes", required=True, help="class names, comma-separated")
    sub.add_argument("-k", type=int, default=3, help="how many")
    sub.add_argument("--passes", type=int, default=24, help="sub-networks to run")
    sub.add_argument("--images", type=int, help="use at most this many training images")
    _run_options(sub)

    sub = command(
        "measure", commands.run_measure, "Measure the latency of sub-networks on this device and store it.",
        "mvp measure my.zoo --batch 1 --threads 1 --where \"accuracy > 0.7\"",
    )  # fmt: skip
    sub.add_argument("zoo")
    sub.add_argument("--base", help="the base when the zoo has several")
    sub.add_argument("--where", help="only those that meet this SQL condition")
    sub.add_argument("--batch", type=int, default=1, help="images a pass")
    sub.add_argument("--threads", type=int, help="CPU threads")
    sub.add_argument("--device", help="cpu or cuda; CUDA when there is one by default")

    sub = command(
        "finetune", commands.run_finetune, "Fine-tune a stored sub-network and add the result.",
        "mvp finetune my.zoo 3fa9c2d1 --dataset cifar100 --root data/cifar100 --steps 100",
    )  # fmt: skip
    sub.add_argument("zoo")
    sub.add_argument("id", help="id of the sub-network, or its first characters")
    _data_options(sub)
    sub.add_argument("--steps", type=int, default=100)
    sub.add_argument("--lr", type=float)
    _run_options(sub)

    sub = command(
        "compare", commands.run_compare,
        "Fine-tune voted, far and random starts equally on held-out tasks; table, CSV and plot.",
        "mvp compare my.zoo --dataset cifar100 --root data/cifar100 --tasks 10 --seeds 3 --long 300 --out runs/compare",
    )  # fmt: skip
    sub.add_argument("zoo")
    _data_options(sub)
    sub.add_argument("--tasks", type=int, default=10, help="held-out tasks, drawn at random by --seed")
    sub.add_argument("--n-classes", type=int, default=5, help="classes a task")
    sub.add_argument("--seeds", type=int, default=3, help="seeds a task")
    _measure_options(sub)
    sub.add_argument("--steps", default=(10, 30, 100), type=_numbers, help="when accuracy is measured, e.g. 10,30,100")
    sub.add_argument("--long", type=int, metavar="J", help="also prune each task with IFP for J steps")
    sub.add_argument("--out", help="folder for runs.csv (a second start goes on with it) and starts.png")
    _run_options(sub)
    sub.set_defaults(seed=1000)

    sub = command(
        "contest", commands.run_contest,
        "Every producer on the same tasks, at equal MACs and fine-tuning steps; table, CSV, plot.",
        "mvp contest --base resnet20 --weights resnet20.safetensors --dataset cifar100 --root data/cifar100 \\\n"
        "    --tasks 5 --entry random --entry 'ifp steps=150' --entry 'lcp method=naive' --out runs/contest",
    )  # fmt: skip
    sub.add_argument("--base", required=True, help="timm:NAME, torchvision:NAME or a registered name")
    sub.add_argument("--weights", help="weights file of the base, or 'published' to download them")
    _data_options(sub)
    sub.add_argument(
        "--entry", action="append", metavar="'NAME OPTION=VALUE ...'",
        help="a producer and its options; repeat it for more. When left out, every producer that runs on\n"
        "the base without a file, with its defaults (the papers', which take long)",
    )  # fmt: skip
    sub.add_argument("--keep", type=float, default=0.3, help="keep ratio (1 - pruning ratio)")
    sub.add_argument("--tasks", type=int, default=5, help="tasks, drawn at random by --seed")
    sub.add_argument("--n-classes", type=int, default=5, help="classes a task")
    sub.add_argument("--seeds", type=int, default=1, help="seeds a task")
    sub.add_argument("--steps", type=int, default=100, help="fine-tuning steps after pruning")
    sub.add_argument("--sources", type=int, default=3, help="source tasks a task, for producers that need them")
    sub.add_argument("--out", help="folder for runs.csv (a second start goes on with it) and producers.png")
    _run_options(sub)
    sub.set_defaults(seed=2000)

    sub = command(
        "measures", commands.run_measures,
        "How well each measure of similarity foretells what a vote of its neighbours gives; table, CSV, plot.",
        "mvp measures my.zoo --dataset cifar100 --root data/cifar100 --tasks 10 --images 250 --out runs/measures",
    )  # fmt: skip
    sub.add_argument("zoo")
    _data_options(sub)
    sub.add_argument("--tasks", type=int, default=5, help="held-out tasks, drawn at random by --seed")
    sub.add_argument("--n-classes", type=int, default=5, help="classes a task")
    sub.add_argument("--seeds", type=int, default=1, help="seeds a task")
    sub.add_argument("--by", help="measures, comma-separated; every one that the zoo and the labels allow by default")
    sub.add_argument("--generator", metavar="FILE", help="for stamp: a file of `mvp meta-train`, the zoo's own")
    sub.add_argument("--images", type=int, help="training images that scores are made of; all by default")
    sub.add_argument("-k", type=int, default=3, help="voters of a block")
    sub.add_argument("--groups", type=int, default=5, help="blocks along a measure's ranking, nearest to farthest")
    sub.add_argument("--steps", type=int, default=30, help="fine-tuning steps of each vote")
    sub.add_argument("--keep", type=float, help="keep ratio; the voters' own by default")
    sub.add_argument("--out", help="folder for runs.csv (a second start goes on with it) and measures.png")
    _run_options(sub)
    sub.set_defaults(seed=3000)

    sub = command(
        "demo", commands.run_demo,
        "The whole path on the sample zoo: query, IoU by depth, vote, compare, add. No download.",
        "mvp demo --out runs/demo",
    )  # fmt: skip
    sub.add_argument("--out", help="folder for plots and the writable copy of the zoo; a new temporary one by default")
    _run_options(sub)

    sub = command("producers", commands.run_producers, "List the installed producers.", "mvp producers")
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


def _measure_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--by", default="wup", help="similarity measure: wup, leep, nce, logme, hscore, prototype, task2vec, stamp"
    )
    sub.add_argument("--generator", metavar="FILE", help="for --by stamp: a file of `mvp meta-train`, the zoo's own")


def _run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", help="cpu or cuda; CUDA when there is one by default")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
