"""The records of a zoo: Task, Base, SubNetwork, Score. Frozen, checked on construction, no I/O.

Ids are SHA-256 over what defines a record, as canonical JSON (sorted keys, no spaces). What was only measured later
(accuracy, latency, scores) and when it was made are not part of an id.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo import labels as _labels
from zoo.errors import RecordError

FORMAT = 1
KINDS = ("structured", "element", "token", "mixed")
MODES = ("coupled", "independent")
INITS = ("pretrained", "reinit")

Tensors = Mapping[str, np.ndarray]


def content_id(**parts: Any) -> str:
    """SHA-256, 64 hex digits, over the parts as canonical JSON."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of named arrays, in name order; the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        head = json.dumps([name, array.dtype.str, list(array.shape)], separators=(",", ":"))
        digest.update(len(head).to_bytes(8, "little") + head.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: which classes, in which order, of which data set.

    Attributes:
        labels: Class names in label order; at least two, no repeats.
        dataset: Name of the data set; None when it is not said.
        synsets: WordNet noun of each label as a wnid ("n02084071"), None where unmapped. Looked up when not given (see
            `zoo.labels.resolve`); give names ("dog.n.01") or wnids to say it yourself.
        split: Which split the sub-networks were trained on.
        seed: Seed of the draw when the classes were sampled.

    Raises:
        RecordError: Fewer than two labels, repeated or empty labels, or synsets of another length.
    """

    labels: tuple[str, ...]
    dataset: str | None = None
    synsets: tuple[str | None, ...] | None = None
    split: str = "train"
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, str) or not isinstance(self.labels, Sequence):
            raise RecordError("task: labels are one sequence of names", got=repr(self.labels)[:80])
        labels = tuple(self.labels)
        problems = [f"label {i} is not a name: {label!r}" for i, label in enumerate(labels) if not _is_name(label)]
        if len(labels) < 2:
            problems.append(f"{len(labels)} label(s) given, a task has at least two classes")
        if repeated := sorted({str(label) for label in labels if labels.count(label) > 1}):
            problems.append(f"given more than once: {', '.join(repeated)}")
        if self.synsets is not None and len(self.synsets) != len(labels):
            problems.append(f"{len(self.synsets)} synsets for {len(labels)} labels")
        if problems:
            raise RecordError("task: the labels are not usable", problems=problems)
        object.__setattr__(self, "labels", labels)
        if self.synsets is None:
            found = _labels.resolve(labels, dataset=self.dataset)
            object.__setattr__(self, "synsets", tuple(r.wnid for r in found))
        else:
            object.__setattr__(self, "synsets", tuple(_labels.to_wnids(self.synsets)))

    @cached_property
    def id(self) -> str:
        """Content id: data set, labels in order, synsets, split and seed."""
        return content_id(
            record="task", dataset=self.dataset, labels=self.labels, synsets=self.synsets, split=self.split,
            seed=self.seed,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def _is_name(label: object) -> bool:
    return isinstance(label, str) and bool(label.strip())


@dataclass(frozen=True, eq=False)
class Base:
    """A pre-trained model that sub-networks are pruned from.

    Attributes:
        name: How to build it again: "timm:resnet18", "torchvision:vgg16_bn" or a registered name ("resnet20").
        num_classes: Outputs of its head.
        input: {"size": [3, H, W], "mean": [r, g, b], "std": [r, g, b]}, mean and std of pixels in 0..1.
        plan: Its channel plan (see mvp/plan.py); plain JSON data.
        weights: Named arrays; loaded when first asked for when the record comes from a zoo.
        weights_digest: `tensors_digest(weights)`.
        info: Anything worth knowing about it (data set, options of the training, accuracy); not part of the id.
    """

    name: str
    num_classes: int
    input: Mapping[str, Any]
    plan: dict[str, Any] = field(repr=False)
    weights: Tensors = field(repr=False)
    weights_digest: str = ""
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.weights_digest:
            object.__setattr__(self, "weights_digest", tensors_digest(self.weights))

    @cached_property
    def id(self) -> str:
        """Content id: architecture (name and classes) and weights. Not the plan: see `design`, plans are reused."""
        return content_id(record="base", name=self.name, num_classes=self.num_classes, weights=self.weights_digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Base) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, eq=False)
class SubNetwork:
    """One pruned model of one task: what it kept, its weights, and how it was made.

    Attributes:
        task: The task it was pruned for.
        base: The base it was cut from.
        channels: {axis: kept indices}, sorted int32; keys are axes of the base's plan ("a3"), or "axis@layer" in mode
            "independent". Axes that are absent are kept whole.
        weights: Named arrays of the slim model (full size in mode "independent"), head included, its rows in label
            order.
        producer: Name of the method that made it ("ifp", "vote", "import").
        keep: Keep ratio asked for, in (0, 1].
        kind: "structured" | "element" | "token" | "mixed".
        mode: "coupled" (one set a residual group, physically small) | "independent" (a set a layer, masks only).
        init: "pretrained" | "reinit"; only structured, pretrained sub-networks vote.
        options: The producer's options, JSON values.
        seed: Seed of the run.
        parents: Ids of the sub-networks it was voted from.
        generation: 0 unless voted; else 1 + the largest of its parents.
        metrics: Measured numbers ("accuracy" in 0..1 on the test split, ...).
        params: Parameters of the slim model, head included.
        macs: Multiply-accumulates of one image.
        embeddings: Named float32 vectors of the task ("prototype").
        removed_blocks: Names of blocks the method removed.
        kept_tokens: {block: number of tokens kept}.
        element_masks: {parameter: bool array, True = kept} of unstructured methods.
        created_at: UTC time.

    Raises:
        RecordError: Lists every field that is wrong.
    """

    task: Task
    base: Base = field(repr=False)
    channels: Mapping[str, np.ndarray] = field(repr=False)
    weights: Tensors = field(repr=False)
    producer: str
    keep: float
    kind: str = "structured"
    mode: str = "coupled"
    init: str = "pretrained"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    parents: tuple[str, ...] = ()
    generation: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: int = 0
    macs: int = 0
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    removed_blocks: tuple[str, ...] = ()
    kept_tokens: Mapping[str, int] = field(default_factory=dict)
    element_masks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    weights_digest: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        channels, problems = {}, []
        for key, kept in self.channels.items():
            array = np.asarray(kept)
            channels[str(key)], problem = _channel_set(key, array, self.base.plan["axes"], self.mode)
            problems += problem
        for name, allowed in (("kind", KINDS), ("mode", MODES), ("init", INITS)):
            if getattr(self, name) not in allowed:
                problems.append(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if not (_is_number(self.keep) and 0 < self.keep <= 1):
            problems.append(f"keep: got {self.keep!r}, expected a ratio in (0, 1]")
        problems += [
            f"metrics[{k!r}]: got {v!r}, expected a finite number" for k, v in self.metrics.items() if not _is_number(v)
        ]
        embeddings = {k: _float32(v) for k, v in self.embeddings.items()}
        problems += [
            f"embeddings[{k!r}]: holds values that are no finite float32 numbers"
            for k, v in embeddings.items()
            if v is None or not np.isfinite(v).all()
        ]
        if isinstance(self.parents, str):
            problems.append(f"parents: got one string {self.parents[:20]!r}, expected a sequence of ids")
        if self.generation and not self.parents:
            problems.append(f"generation {self.generation} without parents")
        # A record read back from a zoo names its digest and must not load its tensors just to be looked at.
        if not self.weights_digest:
            problems += [
                f"weights[{k!r}]: holds NaN or infinite values"
                for k, v in self.weights.items()
                if np.asarray(v).dtype.kind == "f" and not np.isfinite(np.asarray(v)).all()
            ]
        if problems:
            raise RecordError(f"sub-network of {self.base.name} is not usable", problems=problems)
        for name, value in (
            ("seed", int(self.seed)), ("channels", MappingProxyType(channels)), ("keep", float(self.keep)),
            ("parents", tuple(self.parents)),
            ("metrics", {k: float(v) for k, v in self.metrics.items()}),
            ("embeddings", embeddings),
        ):  # fmt: skip
            object.__setattr__(self, name, value)
        if not self.weights_digest:
            masks = {f"mask:{k}": np.asarray(v, dtype=bool) for k, v in self.element_masks.items()}
            object.__setattr__(self, "weights_digest", tensors_digest({**self.weights, **masks}))

    @property
    def base_id(self) -> str:
        """Id of the base."""
        return self.base.id

    @property
    def accuracy(self) -> float | None:
        """Test accuracy in 0..1, None when it was not measured."""
        return self.metrics.get("accuracy")

    @cached_property
    def id(self) -> str:
        """Content id over what defines the sub-network; see the module's docstring for what is left out."""
        return content_id(
            record="subnetwork", base=self.base.id, task=self.task.id, kind=self.kind, mode=self.mode, init=self.init,
            channels={k: v.tolist() for k, v in self.channels.items()}, removed_blocks=self.removed_blocks,
            kept_tokens=dict(self.kept_tokens), weights=self.weights_digest, producer=self.producer,
            options=dict(self.options), seed=self.seed, keep=self.keep, parents=self.parents,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubNetwork) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)


def _float32(vector: Any) -> np.ndarray | None:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        return None


def _channel_set(key: str, kept: np.ndarray, axes: Mapping[str, Any], mode: str) -> tuple[np.ndarray, list[str]]:
    axis, _, layer = str(key).partition("@")
    if axis not in axes:
        return kept, [f"channels[{key!r}]: the base's plan has no axis {axis!r}"]
    if mode == "independent" and layer not in {w["layer"] for w in axes[axis]["writers"]}:
        return kept, [f"channels[{key!r}]: mode 'independent' wants 'axis@layer' with a layer that writes {axis}"]
    if mode == "coupled" and layer:
        return kept, [f"channels[{key!r}]: mode 'coupled' wants whole axes; did you mean mode='independent'?"]
    n = axes[axis]["n"]
    if kept.ndim != 1 or not len(kept):
        return kept, [f"channels[{key!r}]: empty; every axis keeps at least one of its {n} channels"]
    if kept.dtype.kind not in "iu":
        return kept, [f"channels[{key!r}]: got dtype {kept.dtype}, expected integers"]
    if int(kept.min()) < 0 or int(kept.max()) >= n:
        return kept, [
            f"channels[{key!r}]: index {int(kept.max() if kept.max() >= n else kept.min())} outside 0..{n - 1}"
        ]
    if len(np.unique(kept)) != len(kept):
        return kept, [f"channels[{key!r}]: {len(kept) - len(np.unique(kept))} index(es) given more than once"]
    array = np.sort(kept).astype(np.int32)
    array.setflags(write=False)
    return array, []


@dataclass(frozen=True, eq=False)
class Score:
    """One measurement: of a sub-network on a task (LEEP, latency), or of a task by a base (an embedding).

    Attributes:
        source: Id of a sub-network, or of a base for an embedding.
        target: Id of the task measured on; of a latency "batch=1".
        measure: "leep", "prototype", "latency_ms", ...
        value: The number; nan for a pure embedding.
        vector: float32 embedding, None for a plain number.
        device: Device name where it matters.
    """

    source: str
    target: str
    measure: str
    value: float = math.nan
    vector: np.ndarray | None = None
    device: str = ""

    def __post_init__(self) -> None:
        if self.vector is not None:
            object.__setattr__(self, "vector", np.asarray(self.vector, dtype=np.float32))
        if self.vector is None and not math.isfinite(self.value):
            raise RecordError(f"score {self.measure} is not a finite number", got=self.value)
        if self.vector is not None and not np.isfinite(self.vector).all():
            raise RecordError(f"score {self.measure}: the vector holds values that are not finite")

    def _parts(self) -> tuple[Any, ...]:
        value = None if math.isnan(self.value) else float(self.value)
        vector = None if self.vector is None else tuple(self.vector.tolist())
        return (self.source, self.target, self.measure, value, vector, self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Score) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())
