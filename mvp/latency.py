"""How long sub-networks take: measured on a device, stored with the device's name, to be filtered on."""

import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mvp.progress import track
from mvp.score import candidates_of
from mvp.subnetwork import build, cost
from mvp.train import pick_device, place
from mvp.vote import vote_from
from zoo.errors import OptionError
from zoo.records import Score, SubNetwork, Task

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


def vote_within(
    voters: Sequence[SubNetwork],
    task: Task,
    limit_ms: float,
    *,
    batch: int = 1,
    device: str | None = None,
    threads: int | None = None,
    halvings: int = 3,
    **options: Any,
) -> SubNetwork:
    """The largest voted sub-network, in MACs, that was measured to take at most so long on this device.

    Budgets in MACs fall by a factor of 0.7 from the whole base's until a vote meets the limit; then the gap to the last
    one that did not is halved. Latency is no function of MACs (LcP, Table 3), so each candidate is measured.

    Args:
        voters: See `mvp.vote_from`.
        task: See `mvp.vote_from`.
        limit_ms: Milliseconds a batch.
        batch: See `latency_ms`.
        device: See `latency_ms`.
        threads: See `latency_ms`.
        halvings: Steps of the bisection.
        **options: Of `mvp.vote_from`, except `keep` and `budget`.

    Returns:
        The sub-network, with the metric "latency_ms" and the option "latency", which says limit, batch and device.

    Raises:
        OptionError: No sub-network takes so little; says what the smallest took. Or as `mvp.vote_from`.
    """
    made: dict[int, tuple[SubNetwork, float]] = {}

    def meets(macs: int) -> bool:
        sub = vote_from(voters, task, budget={"macs": macs}, **options)
        made[macs] = (sub, latency_ms(sub, batch=batch, device=device, threads=threads))
        return made[macs][1] <= limit_ms

    full = cost(voters[0].base, {}, len(task.labels))[1] if voters else 1
    fits, fails, macs = 0, 0, full
    while not fits:
        try:
            met = meets(macs)
        except OptionError as error:
            if not made:
                raise
            sub, took = made[fails]
            raise OptionError(
                "no voted sub-network is as fast as that", got=f"{took:.3f} ms with {sub.macs:,} MACs",
                expected=f"{limit_ms} ms or less", hint=f"The next smaller budget: {error}",
            ) from error  # fmt: skip
        fits, fails = (macs, fails) if met else (0, macs)
        macs = int(0.7 * macs)
    for _ in range(halvings if fails else 0):
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if meets(middle) else (fits, middle)
    sub, took = made[fits]
    said = {"limit_ms": limit_ms, "batch": batch, "device": device_name(device, threads)}
    return replace(sub, options={**sub.options, "latency": said}, metrics={**sub.metrics, MEASURE: took})


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
