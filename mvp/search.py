"""The nearest tasks by LEEP from images, with fewer forward passes than there are candidates."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mvp.data import Data
from mvp.finetune import check_data
from mvp.progress import bar
from mvp.score import responses
from mvp.train import InputSpec, pick_device
from zoo import query
from zoo.finding import find_rows
from zoo.landmarks import known_rows
from zoo.landmarks import search as search_columns
from zoo.leep import leep
from zoo.records import Score
from zoo.rows import Rows
from zoo.sql import matching_ids

if TYPE_CHECKING:
    from zoo import Zoo
    from zoo.neighbours import Neighbours


def search(
    z: "Zoo",
    data: Data,
    *,
    k: int = 3,
    passes: int = 24,
    base: str | None = None,
    where: str | None = None,
    exclude: Any = "same_classes",
    images: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> "Neighbours":
    """The k nearest sub-networks by LEEP among `passes` that are run on the task's images; see `zoo.landmarks`.

    What was measured is stored as LEEP rows. Sub-networks that lack LEEP on the tasks that most others have it on take
    no part; `removed` of the result counts them, and those that were not run. `zoo recall PATH` says how many of the
    true nearest this finds.

    Args:
        z: A writable zoo that has LEEP of all its sub-networks on some earlier tasks (`mvp populate` stores it).
        data: Images of the new task; its training split is used.
        k: How many, at most `passes`.
        passes: Sub-networks to run.
        base: Id of the base when the zoo has several.
        where: SQL predicate over the view `subnetworks` that limits the candidates.
        exclude: See `Zoo.nearest`.
        images: Use at most this many training images, equally many a class; all when None.
        seed: Seed of that draw.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        EmptyZooError: Fewer candidates than k.
        DataError: No earlier task has LEEP of all candidates.
        OptionError: passes below 2; or the zoo has several bases and none is named.
    """
    chosen = z.base(base)
    check_data(data, chosen)
    data = data if images is None else data.sample(images, seed=seed)
    snapshot, run_on, spec = z.snapshot(), pick_device(device), InputSpec.of(dict(chosen.input))
    allowed = None if where is None else matching_ids(snapshot, where)
    ids = query.candidates(snapshot, data.task, by="leep", base=chosen.id, allowed=allowed, exclude=exclude)
    _, known, usable = known_rows(snapshot, find_rows(Rows.of(snapshot), ids))
    left_out, ids = len(ids) - len(usable), [ids[i] for i in usable]
    inputs, labels = data.train_images.to(run_on), data.train_labels.numpy()
    with bar(progress=progress) as shown:
        line = shown.add_task("forward passes", total=min(passes, len(ids)))

        def measure(i: int) -> float:
            value = leep(responses(z.get(ids[i]), inputs, spec, device=run_on), labels)
            shown.advance(line)
            return value

        at, values = search_columns(np.asarray(known), measure, passes)
    measured = [ids[i] for i in at]
    z.add_scores([Score(i, data.task.id, "leep", float(v)) for i, v in zip(measured, values)])
    found = query.nearest(
        z.snapshot(), data.task, k=k, by="leep", base=chosen.id, allowed=measured, exclude=exclude, per_task=None
    )
    found.removed = {"no LEEP on earlier tasks": left_out, "not run": len(ids) - len(measured)}
    return found
