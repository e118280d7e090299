"""Snapshots made in memory, without a store: plain objects with the tables that query and study read."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASES = pa.schema([("id", pa.string()), ("name", pa.string()), ("num_classes", pa.int32()), ("plan", pa.string())])
TASKS = pa.schema([
    ("id", pa.string()), ("dataset", pa.string()), ("labels", pa.list_(pa.string())),
    ("synsets", pa.list_(pa.string())), ("split", pa.string()), ("seed", pa.int64()),
])  # fmt: skip
SUBNETWORKS = pa.schema([
    ("id", pa.string()), ("base_id", pa.string()), ("task_id", pa.string()), ("dataset", pa.string()),
    ("labels", pa.list_(pa.string())), ("synsets", pa.list_(pa.string())), ("kind", pa.string()), ("mode", pa.string()),
    ("init", pa.string()), ("producer", pa.string()), ("keep", pa.float64()), ("generation", pa.int32()),
    ("channels", pa.map_(pa.string(), pa.list_(pa.int32()))), ("accuracy", pa.float64()), ("params", pa.int64()),
    ("macs", pa.int64()), ("embeddings", pa.map_(pa.string(), pa.list_(pa.float32()))),
    ("created_at", pa.timestamp("us", "UTC")),
])  # fmt: skip
SCORES = pa.schema([
    ("source", pa.string()), ("target", pa.string()), ("measure", pa.string()), ("value", pa.float64()),
    ("vector", pa.list_(pa.float32())), ("device", pa.string()), ("created_at", pa.timestamp("us", "UTC")),
])  # fmt: skip

# Nouns of six kinds, so that wup has something to tell apart.
FAMILIES = {
    "pets": ["dog.n.01", "cat.n.01", "hamster.n.01", "rabbit.n.01", "goldfish.n.01"],
    "wild": ["wolf.n.01", "fox.n.01", "bear.n.01", "lion.n.01", "tiger.n.02"],
    "sea": ["whale.n.02", "dolphin.n.02", "seal.n.09", "shark.n.01", "trout.n.02"],
    "plants": ["oak.n.02", "palm.n.03", "rose.n.01", "tulip.n.01", "sunflower.n.01"],
    "vehicles": ["bus.n.01", "truck.n.01", "train.n.01", "tractor.n.01", "bicycle.n.01"],
    "home": ["chair.n.01", "table.n.02", "sofa.n.01", "lamp.n.01", "bed.n.01"],
}


@dataclass
class FakeSnapshot:
    token: str
    bases: pa.Table
    tasks: pa.Table
    subnetworks: pa.Table
    scores: pa.Table


def make_plan(widths, kinds=None, blocks=None):
    """A chain of layers, one axis each; a width given as (n, layers) is an axis that several layers write."""
    axes, depth = {}, 0
    for i, width in enumerate(widths):
        n, layers = width if isinstance(width, tuple) else (width, 1)
        writers = [{"layer": f"layer{depth + j}", "depth": depth + j} for j in range(layers)]
        axes[f"a{i}"] = {
            "n": n, "kind": kinds[i] if kinds else "filter", "depth": depth + (layers - 1) / 2, "soft": [],
            "unsupported": None, "block": blocks[i] if blocks else None, "writers": writers,
        }  # fmt: skip
        depth += layers
    return {"format": 1, "axes": axes}


def base_row(name="toy", plan=None, id=None):
    return {"id": id or f"base-{name}", "name": name, "num_classes": 10, "plan": json.dumps(plan or make_plan([8, 8]))}


def sub_row(id, task="t0", labels=("dog", "cat"), synsets=None, **fields):
    """A row of `subnetworks`; synsets default to the labels where these are synset names."""
    if synsets is None:
        synsets = [label if ".n." in label else None for label in labels]
    return {
        "id": id, "base_id": "base-toy", "task_id": task, "dataset": "d", "labels": list(labels), "synsets": synsets,
        "kind": "structured", "mode": "coupled", "init": "pretrained", "producer": "ifp", "keep": 0.5, "generation": 0,
        "channels": {}, "accuracy": 0.5, "params": 1, "macs": 1, "embeddings": {}, "created_at": NOW, **fields,
    }  # fmt: skip


def score_row(source, target, value=float("nan"), measure="leep", vector=None):
    return {"source": source, "target": target, "measure": measure, "value": value, "vector": vector, "device": "",
            "created_at": NOW}  # fmt: skip


def _table(rows, schema):
    def plain(value):
        return list(value.items()) if isinstance(value, dict) else value

    return pa.Table.from_pylist([{k: plain(v) for k, v in row.items()} for row in rows], schema=schema)


def make_snapshot(subs=(), scores=(), bases=None, tasks=()):
    """Tables from rows; the tasks of the sub-networks are added by themselves."""
    known = {row["id"]: row for row in tasks}
    for sub in subs:
        known.setdefault(sub["task_id"], {
            "id": sub["task_id"], "dataset": sub["dataset"], "labels": sub["labels"], "synsets": sub["synsets"],
            "split": "train", "seed": None,
        })  # fmt: skip
    return FakeSnapshot(
        "b1-c1-s1-t1", _table(bases or [base_row()], BASES), _table(known.values(), TASKS),
        _table(subs, SUBNETWORKS), _table(scores, SCORES),
    )  # fmt: skip


WIDTHS = ((16, 3), 16, 16, (32, 3), 32, 32, (64, 3), 64, 64)


def similar_zoo(n=40, widths=WIDTHS, keep=0.3, seed=0, strength=0.8, **fields):
    """A zoo in which tasks of one family keep alike channels, and more so in deeper axes.

    Each task draws four classes of its family and one of another. The kept channels are the top of a random score that
    is shared within a family with a weight that grows from 0 to `strength` with depth.
    """
    rng = np.random.default_rng(seed)
    plan = make_plan(list(widths))
    names = list(FAMILIES)
    shared = {f: {a: rng.normal(size=axis["n"]) for a, axis in plan["axes"].items()} for f in names}
    common = {a: rng.normal(size=axis["n"]) for a, axis in plan["axes"].items()}
    subs, scores = [], []
    for i in range(n):
        family = names[i % len(names)]
        other = names[rng.integers(len(names) - 1) - len(names) + 1 + i % len(names)]
        labels = [*rng.permutation(FAMILIES[family])[:4].tolist(), str(rng.choice(FAMILIES[other]))]
        channels = {}
        for j, (axis, spec) in enumerate(plan["axes"].items()):
            weight = strength * j / (len(plan["axes"]) - 1)
            score = (1 - weight) * common[axis] + weight * shared[family][axis] + 0.5 * rng.normal(size=spec["n"])
            channels[axis] = sorted(np.argsort(-score)[: max(1, round(keep * spec["n"]))].tolist())
        subs.append(sub_row(
            f"s{i:04d}", f"t{i:04d}", labels, channels=channels, keep=keep, accuracy=float(rng.uniform(0.6, 0.9)),
            embeddings={
                name: (rng.normal(size=8) * 0.3 + np.eye(8)[i % len(names)]).astype("f4").tolist()
                for name in ("prototype", "stamp")
            },
            created_at=NOW + timedelta(seconds=i), **fields,
        ))  # fmt: skip
    for a in range(n):
        for b in range(n):
            near = len(set(subs[a]["labels"]) & set(subs[b]["labels"]))
            scores.append(score_row(f"s{a:04d}", f"t{b:04d}", -1.6 + 0.3 * near + 0.05 * rng.uniform()))
    return make_snapshot(subs, scores, [base_row(plan=plan)])


def naive_iou(a, b):
    """|A ∩ B| / |A ∪ B| of Python sets, 1 for two empty ones."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else 1.0
