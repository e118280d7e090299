"""The same architecture with fresh random weights, for methods that take nothing but a structure from the base."""

import dataclasses

import numpy as np
import torch

from mvp.bases import create
from mvp.train import derive_seed
from zoo.records import Base


def reinitialised(base: Base, *, seed: int) -> Base:
    """A stand-in for `base` with the weights its architecture starts with; buffers (running statistics) too.

    Cut by `mvp.subnetwork.task_model` like the base itself, so a slim network starts with a part of a full-size draw:
    sub-networks of one seed that keep the same unit start it equally.

    Args:
        base: Any base. Records of what is trained from the stand-in still belong to this one, with init "reinit".
        seed: Seed of the draw.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "reinit"))
        state = create(base.name, base.num_classes).state_dict()
    weights = {k: np.array(state[k].detach().float().numpy() if state[k].is_floating_point() else state[k].numpy())
               for k in base.weights}  # fmt: skip
    return dataclasses.replace(base, weights=weights, weights_digest="")
