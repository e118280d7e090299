"""The response cache: each sub-network's softmax outputs on a fixed set of a data set's images, the probe.

With it LEEP of any task drawn from the probe's classes is array arithmetic: no forward pass. It is an estimate from
fewer images than the task has (`mvp.cache_responses` reports how far off it is). Like everything under `cache/` it can
be deleted at any time and made again; files that are damaged or not ours are passed over with a warning.

    cache/responses/<probe id>/probe.json          what the probe is
    cache/responses/<probe id>/<...>.parquet       id, classes, values (float16, C order) of some sub-networks
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zoo.errors import CorruptionError, DataError
from zoo.files import Files
from zoo.leep import leep_many
from zoo.parts import verified, write_part

log = logging.getLogger(__name__)
FOLDER = "cache/responses"
# float16 outputs of 1,000 images and 5 classes are 10 KB: 1 GB for 100,000 sub-networks.
IMAGES = 1000
_MANY_FILES = 60
_TRIALS = 5
_SCHEMA = pa.schema([("id", pa.string()), ("classes", pa.int32()), ("values", pa.binary())])

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A fixed set of images that sub-networks of one base were run on.

    Attributes:
        base_id: The base.
        dataset: The data set.
        labels: Its classes.
        image_labels: Class of each image, as a place in `labels`.
        images_digest: SHA-256 of the images' pixels.
        seed: Seed that they were drawn by.
    """

    base_id: str
    dataset: str
    labels: tuple[str, ...]
    image_labels: tuple[int, ...]
    images_digest: str
    seed: int

    @cached_property
    def id(self) -> str:
        """SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def rows_of(self, labels: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The images of some classes: their places, and the class of each as a place in `labels`.

        Raises:
            DataError: A class is not in the probe.
        """
        if missing := [label for label in labels if label not in self.labels]:
            raise DataError("the probe has no images of some classes", got=", ".join(missing[:10]),
                            expected=f"classes of {self.dataset}")  # fmt: skip
        place = np.full(len(self.labels), -1)
        place[[self.labels.index(label) for label in labels]] = np.arange(len(labels))
        own = place[np.array(self.image_labels, np.int64)]
        at = np.flatnonzero(own >= 0)
        return at, own[at]


class ResponseCache:
    """The responses of one probe. Any number of processes may write at once.

    Args:
        files: The zoo's files.
        probe: The probe.
    """

    def __init__(self, files: Files, probe: Probe) -> None:
        self._files, self.probe, self._folder = files, probe, f"{FOLDER}/{probe.id}"
        self._read: dict[str, dict[str, Halves]] = {}

    def add(self, responses: Mapping[str, npt.ArrayLike]) -> None:
        """Store softmax outputs, (images, classes) by id of the sub-network; durable when this returns.

        Raises:
            DataError: An array has another number of images, or values that are no probabilities.
            ReadOnlyError: The folder cannot be written.
        """
        arrays = {key: np.asarray(value, np.float16) for key, value in responses.items()}
        problems = [
            f"{key[:12]}: shape {a.shape}" for key, a in arrays.items()
            if a.ndim != 2 or len(a) != len(self.probe.image_labels) or not a.size or not ((a >= 0) & (a <= 1)).all()
        ]  # fmt: skip
        if problems:
            raise DataError("responses are no softmax outputs on the probe", problems=problems,
                            expected=f"probabilities, {len(self.probe.image_labels)} rows")  # fmt: skip
        self._files.make(self._folder)
        self._files.put(f"{self._folder}/probe.json", json.dumps(asdict(self.probe)).encode())
        self._write(arrays)
        if len(parts := self._parts()) > _MANY_FILES:
            self._write(self.load())
            for part in parts:
                self._files.delete(f"{self._folder}/{part}")

    def load(self) -> dict[str, Halves]:
        """All that is stored: {id: float16 (images, classes)}; each file is read once."""
        for _ in range(_TRIALS):
            parts = self._parts()
            try:
                self._read = {part: self._read[part] if part in self._read else self._part(part) for part in parts}
            except FileNotFoundError:
                # Another process has merged the files in this moment: what it held is in a new one.
                continue
            break
        return {key: values for part in sorted(self._read) for key, values in self._read[part].items()}

    def _write(self, arrays: Mapping[str, Halves]) -> None:
        rows = pa.Table.from_pylist(
            [{"id": key, "classes": a.shape[1], "values": a.tobytes()} for key, a in sorted(arrays.items())], _SCHEMA
        )
        write_part(self._files, self._folder, rows)

    def _parts(self) -> list[str]:
        names = self._files.names(self._folder)
        return sorted(name.rsplit("/", 1)[-1] for name in names if name.endswith(".parquet"))

    def _part(self, part: str) -> dict[str, Halves]:
        try:
            data, ours = verified(self._files, self._folder, part)
            if not ours:
                raise CorruptionError(f"{part} is no file of this cache")
            rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
            return {r["id"]: np.frombuffer(r["values"], np.float16).reshape(-1, r["classes"]) for r in rows}
        except FileNotFoundError:
            raise
        except (CorruptionError, OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            log.warning("%s/%s is passed over: %s", self._folder, part, error)
            return {}


def probes(files: Files) -> list[Probe]:
    """The probes of a zoo, ordered by id; what cannot be read or does not give its folder's name is passed over."""
    found = []
    for name in files.names(FOLDER):
        try:
            raw = json.loads(files.read(f"{name}/probe.json"))
            probe = Probe(**{**raw, "labels": tuple(raw["labels"]), "image_labels": tuple(raw["image_labels"])})
            if name.rsplit("/", 1)[-1] != probe.id:
                raise ValueError("its fields give another id")
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is passed over: %s", name, error)
            continue
        found.append(probe)
    return sorted(found, key=lambda probe: probe.id)


def probe_leep(probe: Probe, responses: Mapping[str, Halves], labels: Sequence[str]) -> dict[str, float]:
    """LEEP of sub-networks on a task of the probe's classes, from their stored responses.

    Returns:
        {id: LEEP in nats}.

    Raises:
        DataError: A class is not in the probe.
    """
    at, y = probe.rows_of(labels)
    by_width: dict[int, list[str]] = {}
    for key in sorted(responses):
        by_width.setdefault(responses[key].shape[1], []).append(key)
    found: dict[str, float] = {}
    for keys in by_width.values():
        theta = np.stack([responses[key][at] for key in keys]).astype(np.float32)
        # Half precision moves a row's sum by up to a thousandth.
        theta /= theta.sum(axis=2, keepdims=True)
        found |= dict(zip(keys, leep_many(theta, y).tolist()))
    return found


class ProbeScores:
    """LEEP from the response caches of a zoo, its probes and responses kept between calls.

    Args:
        files: The zoo's files.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._caches: dict[str, ResponseCache] = {}

    def leep(self, dataset: str | None, labels: Sequence[str], bases: Collection[str]) -> dict[str, float]:
        """LEEP of what was run on a probe that has images of all these classes.

        Args:
            dataset: Data set of the classes.
            labels: Class names of the task.
            bases: Ids of the bases whose sub-networks are asked for.

        Returns:
            {id of a sub-network: LEEP in nats}; of several probes of a base the one with the most images counts.
            Empty when no probe has the classes.
        """
        fitting = [
            probe for probe in probes(self._files)
            if probe.dataset == dataset and probe.base_id in bases and set(labels) <= set(probe.labels)
        ]  # fmt: skip
        found: dict[str, float] = {}
        for probe in sorted(fitting, key=lambda probe: (len(probe.image_labels), probe.id)):
            cache = self._caches.setdefault(probe.id, ResponseCache(self._files, probe))
            found |= probe_leep(probe, cache.load(), labels)
        return found
