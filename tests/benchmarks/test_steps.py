"""Training steps of full and slim networks, vote and average; `pytest tests/benchmarks --benchmark-enable` measures."""

import numpy as np
import pytest
import torch

import mvp
from mvp.average import average_weights
from mvp.bases import load_base
from mvp.data import Data
from mvp.plan import kept_indices
from mvp.producers import prune
from mvp.subnetwork import task_model
from mvp.surgery import masked, shrink
from mvp.train import InputSpec, batches, pick_device, place, step
from tests.benchmarks.timing import against

torch.set_num_threads(1)

DEVICE = pick_device(None)
BATCH = 128 if DEVICE.type == "cuda" else 16
LABELS = ("dog", "cat", "horse", "sheep", "goat")


@pytest.fixture(scope="module")
def base():
    return load_base("resnet20")


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return Data("noise", LABELS, images, torch.arange(BATCH) % 5, images, torch.arange(BATCH) % 5)


def stepper(model, base, data):
    """One training step as a function without arguments, the device waited for."""
    place(model, DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    spec = InputSpec.of(dict(base.input))
    stream = batches(data.train_images, data.train_labels, spec, batch_size=BATCH, seed=0, device=DEVICE)
    batch = next(stream)

    def run():
        loss = step(model, optimizer, *batch)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return loss

    return run


@pytest.mark.parametrize("keep", [1.0, 0.3, 0.1])
def test_a_step_of_the_slim_network_against_the_masked_one(keep, base, data, benchmark):
    full = task_model(base, 5)
    channels = prune(base, data, producer="random", keep=keep).channels
    slim, _ = shrink(full, base.plan, channels)
    fast, naive = stepper(slim, base, data), stepper(masked(full, base.plan, channels), base, data)
    benchmark.extra_info |= {"device": str(DEVICE), "batch": BATCH, "keep": keep}
    assert torch.isfinite(fast()) and torch.isfinite(naive())
    against(benchmark, fast, naive, "masked full network")
    if benchmark.stats is not None:
        benchmark.extra_info["steps a second"] = round(1 / benchmark.stats.stats.median, 1)


def naive_average(voters, channels):
    """Full-size arrays with nothing where a voter keeps nothing, their mean where any does, then the cut."""
    base, out = voters[0].base, {}
    for name, full in base.weights.items():
        if name in base.plan["head"]:
            continue
        dims = base.plan["params"].get(name, list(full.shape))
        each = np.full((len(voters), *full.shape), np.nan)
        for voter, sheet in zip(voters, each):
            sheet[np.ix_(*[kept_indices(base.plan, d, voter.channels) for d in dims])] = voter.weights[name]
        held = ~np.isnan(each)
        total = np.where(held, each, 0).sum(0)
        mean = np.where(held.any(0), total / np.maximum(held.sum(0), 1), full)
        out[name] = mean[np.ix_(*[kept_indices(base.plan, d, channels) for d in dims])]
    return out


@pytest.mark.parametrize("k", [3, 10])
def test_average(k, base, data, benchmark):
    voters = [prune(base, data, producer="random", keep=0.3, seed=seed) for seed in range(k)]
    sub = mvp.vote_from(voters, data.task)
    for name, value in naive_average(voters, sub.channels).items():
        np.testing.assert_allclose(sub.weights[name], value, rtol=1e-5, atol=1e-6)
    against(
        benchmark, lambda: average_weights(voters, sub.channels), lambda: naive_average(voters, sub.channels),
        "full-size arrays",
    )  # fmt: skip


@pytest.mark.parametrize("k", [3, 10])
def test_vote_with_average_and_record(k, base, data, benchmark):
    voters = [prune(base, data, producer="random", keep=0.3, seed=seed) for seed in range(k)]
    assert benchmark(lambda: mvp.vote_from(voters, data.task)).parents == tuple(v.id for v in voters)
