"""Filling the response cache: each sub-network runs once on a probe, and LEEP of new tasks takes no more passes."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mvp.data import Data
from mvp.finetune import check_data
from mvp.progress import track
from mvp.score import candidates_of, responses
from mvp.train import InputSpec, pick_device
from zoo.errors import OptionError
from zoo.probe import IMAGES, Probe, ResponseCache, probe_leep
from zoo.rows import Rows

if TYPE_CHECKING:
    from zoo import Zoo

_AT_ONCE = 50  # sub-networks whose responses are written together: what a killed run loses at most


@dataclass(frozen=True)
class Cached:
    """What `cache_responses` did, and how far LEEP from the probe is from LEEP of all images.

    Attributes:
        probe: The probe.
        run: Sub-networks that were run now.
        stored: Sub-networks whose responses are stored.
        size_bytes: Of all stored responses.
        errors: LEEP from the probe minus the stored LEEP of all images, of every pair that has both, float (m,).
        ranks: Spearman correlation of both over the sub-networks, of every task that has both, float (t,).
    """

    probe: Probe
    run: int
    stored: int
    size_bytes: int
    errors: np.ndarray
    ranks: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"probe {self.probe.id[:12]}: {len(self.probe.image_labels)} images of {len(self.probe.labels)} classes of "
            f"{self.probe.dataset}",
            f"{self.run} sub-networks run, {self.stored} stored, {self.size_bytes / max(1, self.stored) / 1000:.1f} KB "
            "each",
        ]
        if len(self.errors):
            off = np.abs(self.errors)
            lines.append(
                f"against LEEP of all images, {len(self.errors)} pairs: off by {off.mean():.3f} nats on average, "
                f"{np.quantile(off, 0.95):.3f} at the 95th percentile, {off.max():.3f} at most; rank correlation over "
                f"sub-networks {self.ranks.mean():.3f} (smallest {self.ranks.min():.3f}, {len(self.ranks)} tasks)"
            )
        return "\n".join(lines)


def cache_responses(
    z: "Zoo",
    source: Data,
    *,
    images: int = IMAGES,
    seed: int = 0,
    base: str | None = None,
    where: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Cached:
    """Runs every sub-network once on a probe of a data set and stores its responses in the zoo's cache.

    `z.nearest(task, by="leep_probe")` then answers for any task of the data set's classes without a forward pass.
    Sub-networks that have responses are not run again, so call it again after adding some.

    Args:
        z: A writable zoo.
        source: The data set, whole; the probe is drawn from its training split, equally many images a class.
        images: Images in the probe, rounded down to a multiple of the classes; 1,000 are 10 KB a sub-network.
        seed: Seed of the draw. Another seed, data set or number of images is another probe.
        base: Id of the base when the zoo has several.
        where: SQL predicate over the view `subnetworks` that limits them.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        OptionError: Fewer images than classes; or the zoo has several bases and none is named.
        ReadOnlyError: The zoo cannot be written.
    """
    if images < len(source.labels):
        raise OptionError("images of the probe", got=images, expected=f"{len(source.labels)}, one a class, or more")
    z._store.check_writable()
    chosen = z.base(base)
    check_data(source, chosen)
    drawn = source.sample(images, seed=seed)
    pixels = np.ascontiguousarray(drawn.train_images.numpy())
    probe = Probe(
        base_id=chosen.id, dataset=source.dataset, labels=tuple(source.labels),
        image_labels=tuple(drawn.train_labels.tolist()), images_digest=hashlib.sha256(pixels.data).hexdigest(),
        seed=seed,
    )  # fmt: skip
    cache, where_to_run = ResponseCache(z._store.files, probe), pick_device(device)
    have = cache.load()
    missing = [i for i in candidates_of(z, chosen, where) if i not in have]
    inputs, spec = drawn.train_images.to(where_to_run), InputSpec.of(dict(chosen.input))
    batch: dict[str, np.ndarray] = {}
    for n, i in enumerate(track(missing, "responses", progress=progress), start=1):
        batch[i] = responses(z.get(i), inputs, spec, device=where_to_run)
        if len(batch) == _AT_ONCE or n == len(missing):
            cache.add(batch)
            batch = {}
    stored = cache.load()
    errors, ranks = _against_full(z, probe, stored)
    return Cached(probe, len(missing), len(stored), sum(a.nbytes for a in stored.values()), errors, ranks)


def _against_full(z: "Zoo", probe: Probe, stored: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import spearmanr

    rows, errors, ranks = Rows.of(z.snapshot()), [], []
    tasks = {t.id: t for t in z.tasks() if t.dataset == probe.dataset and set(t.labels) <= set(probe.labels)}
    for task, (at, values) in sorted(rows.scores("leep").items()):
        known = {rows.ids[i]: v for i, v in zip(at, values) if rows.ids[i] in stored}
        if task not in tasks or not known:
            continue
        estimate = probe_leep(probe, {i: stored[i] for i in known}, tasks[task].labels)
        ids = sorted(known)
        mine, true = np.array([estimate[i] for i in ids]), np.array([known[i] for i in ids])
        errors.append(mine - true)
        if len(ids) > 2:
            ranks.append(float(spearmanr(mine, true).statistic))
    return np.concatenate([np.empty(0), *errors]), np.array(ranks)
