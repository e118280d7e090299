"""A large zoo of made-up records, and how long it takes to open and ask: `python -m tests.benchmarks.large 100000`.

The records are rows as the store writes them (a ResNet-18's channel sets at keep 0.1, a 512-d embedding of half
precision, five classes of CIFAR-100); their weights are not there. Each figure comes from a process of its own.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import zoo
from zoo import arrow, labels
from zoo.weights import blob_path, encode

WIDTHS = (64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
CHUNK = 20_000


def base() -> zoo.Base:
    """A base with the axes of a ResNet-18 and next to no weights."""
    axes = {
        f"a{i}": {"n": n, "kind": "filter", "depth": float(i), "soft": [], "unsupported": None, "block": None,
                  "writers": [{"layer": f"conv{i}", "depth": i, "expr": f"a{i}", "gate": f"conv{i}", "side": "output",
                               "dim": 1, "relu": True}]}
        for i, n in enumerate(WIDTHS)
    }  # fmt: skip
    plan = {"format": 1, "input": [3, 32, 32], "axes": axes, "params": {"fc.weight": [100, "a11"]}, "attrs": [],
            "macs": [[1, ["a11"]]], "head": ["fc.weight"]}  # fmt: skip
    return zoo.Base(
        name="made up", num_classes=100, input={"size": [3, 32, 32]}, plan=plan,
        weights={"fc.weight": np.zeros((100, 512), np.float32)},
    )  # fmt: skip


def rows(first: int, n: int, base_id: str, seed: int = 0) -> list[dict]:
    """Rows of `subnetworks`, each of a task of its own."""
    names = list(labels.table("cifar100"))
    nouns = {name: entry.wnid for name, entry in labels.table("cifar100").items()}
    rng = np.random.default_rng([seed, first])
    now = 1_700_000_000_000_000
    options = json.dumps({"steps": 1000, "importance": "activation", "prune_share": 0.2, "prune_every": 10, "lr": 5e-3})
    made = []
    for i in range(first, first + n):
        mine = [names[j] for j in rng.permutation(100)[:5]]
        task = zoo.Task(labels=mine, synsets=[nouns[m] for m in mine], dataset="cifar100", seed=i)
        key = hashlib.sha256(str(i).encode()).hexdigest()
        made.append({
            "id": key, "base_id": base_id, "task_id": task.id, "dataset": "cifar100", "labels": mine,
            "synsets": list(task.synsets or ()), "split": task.split, "task_seed": i, "kind": "structured",
            "mode": "coupled", "init": "pretrained", "producer": "ifp", "keep": 0.1, "options": options, "seed": 0,
            "parents": [], "generation": 0, "removed_blocks": [], "kept_tokens": [], "weights_digest": key,
            "channels": [
                (f"a{j}", np.sort(rng.permutation(w)[: max(1, round(0.1 * w))]).astype("<i4"))
                for j, w in enumerate(WIDTHS)
            ],
            "metrics": [("accuracy", 0.5), ("seconds", 60.0), ("steps", 1000.0)], "accuracy": float(rng.random()),
            "params": 120_000, "macs": 5_500_000, "format": 1, "created_at": now + i,
            "embeddings": [("prototype", rng.standard_normal(512).astype(np.float16).astype("<f4"))],
        })  # fmt: skip
    return made


def make(path: Path, n: int) -> None:
    """Fills a zoo with n rows, each with its task, and compacts it."""
    z, own = zoo.open(path), base()
    store = z._store
    stamp = 1_700_000_000_000_000
    store.files.put(blob_path(own.weights_digest), encode(own.weights)[1])
    store.tables["bases"].append(arrow.to_table("bases", [{**arrow.base_row(own, _time()), "created_at": stamp}]))
    for first in range(0, n, CHUNK):
        chunk = rows(first, min(CHUNK, n - first), own.id)
        tasks = [
            {"id": r["task_id"], "dataset": r["dataset"], "labels": r["labels"], "synsets": r["synsets"],
             "split": r["split"], "seed": r["task_seed"], "format": 1, "created_at": r["created_at"]} for r in chunk
        ]  # fmt: skip
        store.tables["tasks"].append(arrow.to_table("tasks", tasks))
        store.tables["subnetworks"].append(arrow.to_table("subnetworks", chunk))
    z.compact()


def _time():
    from datetime import UTC, datetime

    return datetime.now(UTC)


def ask(path: str) -> dict[str, float]:
    """Opens the zoo and asks it, in this process; seconds, and MB at the peak."""
    figures = {}

    def clock(name, run, times=1):
        best = []
        for _ in range(times):
            started = time.perf_counter()
            result = run()
            best.append(time.perf_counter() - started)
        figures[name] = sorted(best)[len(best) // 2]
        return result

    task = zoo.Task(labels=["dolphin", "whale", "seal", "otter", "beaver"], dataset="cifar100")
    z = clock("open", lambda: zoo.open(path))
    found = clock("nearest by wup, cold", lambda: z.nearest(task, k=5))
    clock("nearest by wup, warm", lambda: z.nearest(task, k=5), 20)
    clock("nearest by wup, warm, compiled", lambda: z.nearest(task, k=5), 20)
    clock("nearest by wup of a producer", lambda: z.nearest(task, k=5, producer="ifp"), 10)
    clock("get a sub-network's row", lambda: z.snapshot().row(found[0].id), 5)
    clock("nearest by wup, where accuracy > 0.9", lambda: z.nearest(task, k=5, where="accuracy > 0.9"), 3)
    channels = {f"a{j}": np.arange(max(1, round(0.1 * w))) for j, w in enumerate(WIDTHS)}
    subs = iter(
        zoo.SubNetwork(
            task=task, base=z.bases()[0], channels=channels, producer="mine", keep=0.1, seed=seed,
            weights={"fc.weight": np.full((5, 51), seed, np.float32)}, params=255, macs=51, options={},
        )
        for seed in range(10**6)
    )  # fmt: skip
    clock("add, durable", lambda: z.add(next(subs)), 5)
    clock("nearest by wup behind an add", lambda: z.nearest(task, k=5))
    figures["peak MB after these"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    """Prints the figures as a table."""
    from zoo.table import text_table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, help="sub-networks")
    parser.add_argument("--path", help="keep the zoo there, and use it when it is there")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        sys.stdout.write(json.dumps(ask(args.path)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.path) if args.path else Path(folder) / "large.zoo"
        if not path.exists():
            make(path, args.n)
        again = [sys.executable, "-m", "tests.benchmarks.large", str(args.n), "--path", str(path), "--ask"]
        figures = json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    figures["bytes on disk a sub-network"] = size / args.n
    columns = {"what": list(figures), "s, MB or bytes": [f"{v:.4g}" for v in figures.values()]}
    sys.stdout.write(text_table(columns, title=f"{args.n:,} sub-networks") + "\n")


if __name__ == "__main__":
    main()
