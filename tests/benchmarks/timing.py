"""Run something under pytest-benchmark, note how many times longer a naive way takes; no time is asserted."""

import time
from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture


def against(
    benchmark: BenchmarkFixture, fast: Callable[[], Any], naive: Callable[[], Any], name: str = "naive"
) -> None:
    """Benchmarks `fast`; with benchmarks enabled, extra_info gets the naive way's time as a multiple of the median."""
    benchmark(fast)
    if benchmark.stats is None:
        return
    times = []
    for _ in range(3):
        started = time.perf_counter()
        naive()
        times.append(time.perf_counter() - started)
    benchmark.extra_info[f"times longer: {name}"] = round(sorted(times)[1] / benchmark.stats.stats.median, 2)
