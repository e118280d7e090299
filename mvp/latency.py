"""How long sub-networks take: measured on a device, stored with the device's name, to be filtered on."""

import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mvp.progress import track
from mvp.score import candidates_of
from mvp.subnetwork import build
from mvp.train import pick_device, place
from zoo.errors import OptionError
from zoo.records import Score, SubNetwork

if TYPE_CHECKING:
    from zoo import Zoo

MEASURE = "latency_ms"


def latency_ms(
    sub: SubNetwork, *, batch: int = 1, device: str | None = None, threads: int | None = None, seconds: float = 0.2
) -> float:
    """Median time of a forward pass of the slim network in eval mode, in ms a batch.

    Args:
        sub: A structured sub-network.
        batch: Images a pass, at least 1.
        device: CUDA when there is one, when None. A GPU is waited for.
        threads: CPU threads; torch's own number when None.
        seconds: Passes are repeated for at least so long.

    Raises:
        OptionError: batch below 1, or a kind of sub-network that cannot be built.
    """
    # Importing the timer looks for a compiler of CUDA and warns where there is none, which nothing here needs.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    if batch < 1:
        raise OptionError("latency: images a pass", got=batch, expected="1 or more")
    where = pick_device(device)
    model = place(build(sub), where).eval()
    images = torch.zeros(batch, *sub.base.input["size"], device=where)
    timer = Timer("model(images)", globals={"model": model, "images": images},
                  num_threads=threads or torch.get_num_threads())  # fmt: skip
    with torch.inference_mode():
        return timer.blocked_autorange(min_run_time=seconds).median * 1000


def device_name(device: str | None = None, threads: int | None = None) -> str:
    """What a latency is recorded with: the GPU's name, or the processor's with the number of threads."""
    where = pick_device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{_processor()}, {threads or torch.get_num_threads()} threads"


def measure(
    z: "Zoo",
    ids: Sequence[str] | None = None,
    *,
    batch: int = 1,
    base: str | None = None,
    where: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> int:
    """Measures the latency of sub-networks and stores it in `scores`: measure "latency_ms", target "batch=1".

    Then e.g. `z.nearest(task, where="id in (select source from scores where measure = 'latency_ms' and value < 2)")`.
    A measurement on the same device replaces the older one.

    Args:
        z: A writable zoo.
        ids: These; all of the base when None.
        batch: See `latency_ms`.
        base: Id of the base when the zoo has several.
        where: SQL predicate over the view `subnetworks` that limits them.
        device: See `latency_ms`.
        threads: See `latency_ms`.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        How many were measured.

    Raises:
        NotFoundError: An id that is not there.
        OptionError: See `latency_ms`; or the zoo has several bases and none is named.
    """
    chosen = candidates_of(z, z.base(base), where) if ids is None else [z.snapshot().find(i) for i in ids]
    name, rows = device_name(device, threads), []
    for i in track(chosen, "latency", progress=progress):
        value = latency_ms(z.get(i), batch=batch, device=device, threads=threads)
        rows.append(Score(i, f"batch={batch}", MEASURE, value, device=name))
    z.add_scores(rows)
    return len(rows)


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
