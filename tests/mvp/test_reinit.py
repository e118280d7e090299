import numpy as np
import torch

from mvp.reinit import reinitialised
from mvp.subnetwork import task_model
from tests import tiny
from tests.tiny import registered  # noqa: F401


def test_everything_is_drawn_anew_as_the_architecture_starts_and_the_base_stays():
    base = tiny.base()
    before = {k: np.array(v) for k, v in base.weights.items()}
    fresh = reinitialised(base, seed=3)
    assert fresh.weights.keys() == base.weights.keys() and fresh.plan == base.plan and fresh.id != base.id
    assert all(np.array_equal(before[k], base.weights[k]) for k in before)
    for name, value in fresh.weights.items():
        assert value.shape == before[name].shape and not np.array_equal(value, before[name]), name
    assert (fresh.weights["bn2.weight"] == 1).all() and (fresh.weights["bn2.running_mean"] == 0).all()
    assert (fresh.weights["bn2.running_var"] == 1).all()
    # nn.Conv2d starts uniform in +-1/sqrt(fan in).
    assert 0.9 < np.abs(fresh.weights["conv3.weight"]).max() * (12 * 9) ** 0.5 <= 1


def test_the_seed_decides_and_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = (reinitialised(tiny.base("vit"), seed=s).weights["blocks.0.mlp.fc1.weight"] for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_cut_like_the_base():
    fresh = reinitialised(tiny.base(), seed=0)
    kept = {"a0": np.array([1, 5]), "a1": np.array([0, 2, 7])}
    slim = task_model(fresh, 3, channels=kept).state_dict()
    assert np.array_equal(slim["conv3.weight"].numpy(), fresh.weights["conv3.weight"][np.ix_(kept["a0"], kept["a1"])])
