"""LEEP of many models and the IoU of all pairs; `pytest tests/benchmarks --benchmark-enable` measures."""

import math

import numpy as np
import pytest

from tests.benchmarks.timing import against
from zoo.leep import leep, leep_many
from zoo.leep_intervals import leep_intervals
from zoo.overlap import group_means

WIDTHS = [64] * 5 + [128] * 5 + [256] * 5 + [512] * 5  # kept channels of a ResNet-18, about


def per(benchmark, what, number, unit=1e9):
    """Notes the median time of one of many, in ns or what the unit makes of a second."""
    if benchmark.stats is not None:
        benchmark.extra_info[what] = round(benchmark.stats.stats.median / number * unit, 2)


def models(count, images, width, dtype):
    rng = np.random.default_rng(0)
    theta = rng.random((count, images, width), dtype=np.float32) ** 4
    theta /= theta.sum(axis=2, keepdims=True)
    return theta.astype(dtype), rng.integers(0, 5, images)


def naive_leep(theta, labels):
    n, zs = len(theta), range(len(theta[0]))
    joint = {y: [sum(theta[i][z] for i in range(n) if labels[i] == y) for z in zs] for y in set(labels)}
    total = [sum(row[z] for row in joint.values()) for z in zs]
    share = {y: [a / b if b else 0.0 for a, b in zip(row, total)] for y, row in joint.items()}
    return sum(math.log(sum(a * b for a, b in zip(share[y], row))) for y, row in zip(labels, theta)) / n


@pytest.mark.parametrize("width, count", [(5, 200), (100, 40), (1000, 10)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_leep_of_many_models(width, count, dtype, benchmark):
    theta, labels = models(count, 500, width, dtype)
    values = leep_many(theta, labels)
    assert values == pytest.approx([leep(model, labels) for model in theta], rel=1e-12)
    assert values[0] == pytest.approx(naive_leep(theta[0].astype(float).tolist(), labels.tolist()), rel=1e-9)
    against(benchmark, lambda: leep_many(theta, labels), lambda: [leep(m, labels) for m in theta], "leep in turn")
    per(benchmark, "us a model", count, 1e6)
    if benchmark.stats is not None:
        benchmark.extra_info["GB a second"] = round(theta.nbytes / benchmark.stats.stats.median / 1e9, 2)


def test_memory_bandwidth(benchmark):
    """What the GB a second above are to be compared with: one pass over 200 MB."""
    numbers = np.ones(25_000_000)
    assert benchmark(numbers.sum) == len(numbers)
    if benchmark.stats is not None:
        benchmark.extra_info["GB a second"] = round(numbers.nbytes / benchmark.stats.stats.median / 1e9, 2)


def test_intervals_of_leep(benchmark):
    theta, labels = models(20, 250, 5, np.float32)
    assert benchmark(lambda: leep_intervals(theta, labels, 1000, 0)).first.sum() == pytest.approx(1)
    per(benchmark, "ms a model", len(theta), 1e3)


@pytest.mark.parametrize("keep", [0.1, 0.3])
@pytest.mark.parametrize("n", [30, 2000])
def test_iou_of_all_pairs_in_groups(n, keep, benchmark):
    rng = np.random.default_rng(0)
    units = []
    for width in WIDTHS:
        kept = np.argpartition(rng.random((n, width)), int(width * keep), axis=1)[:, : int(width * keep)]
        mask = np.zeros((n, width), bool)
        np.put_along_axis(mask, kept, True, axis=1)
        units.append(np.packbits(mask, axis=1, bitorder="little").view(np.uint64))
    few = range(min(n, 30))
    sets = [
        [set(np.flatnonzero(np.unpackbits(words[i].view(np.uint8), bitorder="little")).tolist()) for i in few]
        for words in units
    ]
    group = rng.integers(0, 6, (n, n), dtype=np.uint8)

    def naive():
        sums = np.zeros((len(units), 30, 30))
        for u, of_unit in enumerate(sets):
            for t, a in enumerate(of_unit):
                for j, b in enumerate(of_unit):
                    sums[u, t, j] = len(a & b) / len(a | b)
        return sums

    if n == 30:
        means, ious = group_means(units, group, 5)[0], naive()
        for t in few:
            for g in range(5):
                if (group[t] == g + 1).any():
                    assert means[:, t, g] == pytest.approx(ious[:, t, group[t] == g + 1].mean(axis=1))
    against(benchmark, lambda: group_means(units, group, 5), naive, "python sets, 30 x 30 pairs")
    per(benchmark, "ns a pair", n * n)
    if benchmark.stats is not None:
        times = benchmark.extra_info["times longer: python sets, 30 x 30 pairs"]
        benchmark.extra_info["times longer a pair: python sets"] = round(times * n * n / 900)
