"""What a model's head takes in: the features behind its logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mvp.train import InputSpec, outputs


@contextmanager
def head_inputs(model: nn.Module, plan: dict[str, Any]) -> Iterator[list[Tensor]]:
    """A list that each forward pass appends the head's input to, in whatever shape and with its graph."""
    caught: list[Tensor] = []
    head = model.get_submodule(plan["head"][0].rpartition(".")[0])
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        yield caught
    finally:
        hook.remove()


def logits_and_features(
    model: nn.Module, plan: dict[str, Any], images: Tensor, spec: InputSpec, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits and the head's inputs from one pass in eval mode, float32 on the CPU, shapes (n, classes) and (n, d).

    Args:
        model: A model of the plan's architecture, full or slim.
        plan: The base's plan, which names the head.
        images: uint8, shape (n, 3, h, w).
        spec: The base's input spec.
        device: Where the model is.
    """
    with head_inputs(model, plan) as caught:
        logits = outputs(model, images, spec, device=device)
    return logits, torch.cat([x.detach().flatten(1).float().cpu() for x in caught])
