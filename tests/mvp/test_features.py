import numpy as np
import pytest
import torch

from mvp.bases import full_model
from mvp.features import head_inputs, logits_and_features
from tests import tiny
from tests.tiny import registered  # noqa: F401


@pytest.mark.parametrize(("name", "head"), [("cnn", "fc"), ("vit", "head")])
def test_features_are_what_the_head_makes_logits_of(name, head):
    model, images = full_model(tiny.base(name)), tiny.data().train_images[:130]  # more than two batches
    model.train()
    logits, features = logits_and_features(model, tiny.base(name).plan, images, tiny.SPEC, device=tiny.CPU)
    assert model.training and features.shape == (130, 8 if name == "cnn" else 12)
    assert not features.requires_grad and not logits.requires_grad
    np.testing.assert_allclose(model.get_submodule(head)(features).detach(), logits, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(tiny.SPEC(images)), logits, atol=1e-6)


def test_the_hook_goes_even_after_an_error():
    model = full_model(tiny.base())
    with pytest.raises(ZeroDivisionError), head_inputs(model, tiny.base().plan) as caught:
        model(tiny.SPEC(tiny.data().train_images[:2]))
        assert caught[0].requires_grad
        _ = 1 / 0
    model(tiny.SPEC(tiny.data().train_images[:2]))
    assert len(caught) == 1
