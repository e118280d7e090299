"""`mvp demo`: the whole path on the sample zoo in minutes, no download, no GPU; every number is computed now."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

import zoo
from mvp.compare import Comparison, compare
from mvp.data import Data, draw_tasks
from mvp.datasets import digits
from mvp.finetune import finetune
from mvp.score import score
from zoo.table import text_table

NEW_TASK = ("cat", "dog", "horse", "sheep", "goat")
N_TASKS, SEEDS, STEPS = 3, (0, 1), (10, 20)
IMAGES_FOR_LEEP = 250


def demo(*, out: str | Path | None = None, seed: int = 0, device: str | None = None) -> Comparison:
    """Queries the sample zoo, studies it, votes for tasks of an unseen domain, compares starts, adds the result.

    Args:
        out: Folder for the plots and a writable copy of the sample zoo; a new temporary folder when None.
        seed: Seed of the tasks drawn from the digits, of the votes and of the fine-tuning.
        device: CUDA when there is one, when None.

    Returns:
        The comparison of step 5.

    Raises:
        NotAZooError: `out` holds a folder demo.zoo already.
    """
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="mvp-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    say, started = Console(highlight=False, soft_wrap=True).print, time.perf_counter()

    say("\n[bold]1. A copy of the sample zoo[/bold]")
    z = zoo.sample(copy_to=folder / "demo.zoo")
    say(_contents(z), markup=False)

    say(f"\n[bold]2. The stored tasks nearest to a new one: {', '.join(NEW_TASK)}[/bold] (labels are enough)")
    say(str(z.nearest(zoo.Task(labels=NEW_TASK), k=5, by="wup")), markup=False)

    say("\n[bold]3. Do similar tasks keep the same channels, and at which depth?[/bold]")
    study = z.iou_by_depth(by="leep", producer="ifp")
    study.plot(folder / "iou_by_depth.png")
    say(str(study.gap), markup=False)

    say("\n[bold]4. New tasks from images the base has never seen: scikit-learn's handwritten digits[/bold]")
    source = digits()
    tasks = [source.subset(t, seed=seed) for t in draw_tasks(source.labels, N_TASKS, seed=seed)]
    for data in tasks:
        rows = score(z, data, by="leep", images=IMAGES_FOR_LEEP, seed=seed, device=device)
        nearest, farthest = (z.nearest(data.task, k=None, by="leep")[i] for i in (0, -1))
        say(
            f"digits {', '.join(data.labels)}: LEEP of {rows} sub-networks; nearest {nearest.score:.3f} "
            f"({', '.join(nearest.labels)}), farthest {farthest.score:.3f} ({', '.join(farthest.labels)})",
            markup=False,
        )

    say("\n[bold]5. Which start is worth most?[/bold] Equal channels, head, batches and steps from each")
    comparison = compare(
        z, tasks, by="leep", nearest=(3, 1), farthest=(3,), steps=STEPS, seeds=[seed + s for s in SEEDS], device=device
    )
    comparison.plot(str(folder / "starts.png"))
    say(str(comparison), markup=False)

    say("\n[bold]6. The result goes back into the zoo, and is found again[/bold]")
    _take_back(z, comparison, tasks[0], say, device)

    z.plot_channels([*comparison.best[0].parents[:2], z.ids()[-1]], folder / "channels.png")
    say(f"\n{time.perf_counter() - started:.0f} s. Plots in {folder}: iou_by_depth.png, starts.png, channels.png")
    return comparison


def _contents(z: zoo.Zoo) -> str:
    rows = z.sql(
        "select dataset, producer, count(*) as subnetworks, avg(keep) as keep, avg(accuracy) as accuracy, "
        "avg(params)::int as params, avg(macs)::bigint as macs from subnetworks group by all order by all"
    )
    return text_table({c: [row[i] for row in rows.fetchall()] for i, c in enumerate(rows.columns)}, title=repr(z))


def _take_back(z: zoo.Zoo, comparison: Comparison, data: Data, say: Callable[..., None], device: str | None) -> None:
    sub = finetune(comparison.best[0], data, steps=STEPS[-1], device=device)
    z.add(sub)
    found = z.nearest(data.task, k=3, by="wup", exclude=None)
    say(str(found), markup=False)
    say(
        f"added {sub.id[:12]} (generation {sub.generation}, accuracy {sub.accuracy:.3f}); "
        f"{'it is' if found.id[0] == sub.id else 'it is NOT'} the nearest to its own task. Zoo version {z.version}."
    )
