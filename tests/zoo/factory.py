"""A small fake base with its plan, and sub-networks of it: tiny tensors, no torch."""

from typing import Any

import numpy as np

from zoo.records import Base, SubNetwork, Task

PLAN: dict[str, Any] = {
    "format": 1,
    "input": [3, 8, 8],
    "axes": {
        "a0": {"n": 8, "kind": "filter", "depth": 0.0, "soft": [], "unsupported": None, "block": "stem",
               "writers": [{"layer": "conv1", "depth": 0, "expr": "a0", "gate": "bn1", "side": "output",
                            "relu": True}]},
        "a1": {"n": 6, "kind": "filter", "depth": 1.0, "soft": [], "unsupported": None, "block": "body",
               "writers": [{"layer": "conv2", "depth": 1, "expr": "a1", "gate": "conv2", "side": "output",
                            "relu": True}]},
        "a2": {"n": 4, "kind": "head", "depth": 2.0, "soft": [], "unsupported": "its width is fixed", "block": None,
               "writers": [{"layer": "attn", "depth": 2, "expr": {"prod": ["a2", 2]}, "gate": "proj", "side": "input",
                            "relu": False}]},
    },
    "params": {
        "conv1.weight": ["a0", 3, 3, 3], "bn1.weight": ["a0"], "conv2.weight": ["a1", "a0", 1, 1],
        "attn.weight": [{"prod": ["a2", 2]}, "a1"], "fc.weight": [10, {"cat": ["a1", {"prod": ["a2", 2]}]}],
    },
    "attrs": [],
    "macs": [[64, ["a0", 27]], [64, ["a1", "a0"]]],
    "head": ["fc.weight", "fc.bias"],
}  # fmt: skip

LABELS = ["dolphin", "whale", "seal", "otter", "beaver", "dog", "cat", "horse"]
SYNSETS = [
    "dolphin.n.02", "whale.n.02", "seal.n.09", "otter.n.02", "beaver.n.07", "dog.n.01", "cat.n.01", "horse.n.01",
]  # fmt: skip


def make_tensors(seed: int, *, a0: int = 8, a1: int = 6, classes: int = 10) -> dict[str, np.ndarray]:
    """Every tensor of the fake network at the given widths."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "conv1.weight": normal(a0, 3, 3, 3), "bn1.weight": normal(a0), "conv2.weight": normal(a1, a0, 1, 1),
        "attn.weight": normal(8, a1), "fc.weight": normal(classes, a1 + 8), "fc.bias": normal(classes),
        "bn1.num_batches_tracked": np.array(seed, dtype=np.int64),
    }  # fmt: skip


def make_base(seed: int = 0, **changes: Any) -> Base:
    """A fake base; another seed gives another base."""
    fields: dict[str, Any] = {
        "name": "fake", "num_classes": 10, "plan": PLAN, "weights": make_tensors(seed), "info": {"accuracy": 0.5},
        "input": {"size": [3, 8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }  # fmt: skip
    return Base(**{**fields, **changes})


def make_task(seed: int = 0, *, classes: int = 5, **changes: Any) -> Task:
    """A task of `classes` labels; the synsets are said, so nothing is looked up."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(LABELS))[:classes]
    fields: dict[str, Any] = {
        "labels": tuple(LABELS[i] for i in chosen), "dataset": "fake10", "synsets": tuple(SYNSETS[i] for i in chosen),
        "seed": seed,
    }  # fmt: skip
    return Task(**{**fields, **changes})


def make_sub(seed: int = 0, *, base: Base | None = None, task: Task | None = None, **changes: Any) -> SubNetwork:
    """A sub-network of the fake base, half of each prunable axis kept; another seed gives another one."""
    rng = np.random.default_rng(seed)
    task = task or make_task(seed)
    channels = {"a0": np.sort(rng.permutation(8)[:4]), "a1": np.sort(rng.permutation(6)[:3])}
    fields: dict[str, Any] = {
        "task": task, "base": base or make_base(), "channels": channels, "producer": "ifp", "keep": 0.5, "seed": seed,
        "weights": make_tensors(1000 + seed, a0=4, a1=3, classes=len(task.labels)), "options": {"p": 0.5, "h": None},
        "metrics": {"accuracy": 0.5 + seed / 1000, "loss": 1.0}, "params": 321, "macs": 4321,
        "embeddings": {"prototype": rng.normal(size=4).astype(np.float32)},
    }  # fmt: skip
    return SubNetwork(**{**fields, **changes})
