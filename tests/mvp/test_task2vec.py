import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mvp.bases import full_model
from mvp.data import Data
from mvp.task2vec import fit_head, task2vec
from mvp.train import derive_seed
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import DataError


def naive_task2vec(base, data, seed):
    """Fisher information of each weight by one loss and one backward pass an image, averaged in Python."""
    model = full_model(base).eval()
    head = model.get_submodule(base.plan["head"][0].rpartition(".")[0])
    seen = []
    head.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    features = []
    for image in data.train_images:
        model(tiny.SPEC(image[None]))
        features.append(seen.pop().detach()[0])
    features = torch.stack(features)
    weight, bias = fit_head(features.numpy(), data.train_labels.numpy())
    p = (features.double() @ weight.T + bias).softmax(1)
    y = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(derive_seed(seed, "task2vec")))[:, 0]
    filters = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not name.endswith("weight") or name in base.plan["head"]:
            continue
        for k in range(len(parameter)):
            filters.append((parameter, k, []))
    for image, label in zip(data.train_images, y):
        model.zero_grad()
        model(tiny.SPEC(image[None]))
        (-(seen.pop()[0] @ weight.float().T + bias.float()).log_softmax(0)[label]).backward()
        for parameter, k, squares in filters:
            squares.append(float((parameter.grad[k].double() ** 2).mean()))
    return np.array([np.mean(squares) for _, _, squares in filters])


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_it_is_the_mean_squared_gradient_of_each_filter(name):
    data = tiny.task().sample(12, seed=0)
    got = task2vec(tiny.base(name), data, seed=3)
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() > 0
    np.testing.assert_allclose(got, naive_task2vec(tiny.base(name), data, 3), rtol=2e-4, atol=1e-9)
    assert len(got) == {"cnn": 8 + 12 + 8, "vit": 12 + 2 * (3 * 12 + 12 + 24 + 12)}[name]


def test_the_seed_draws_the_labels_and_nothing_else():
    data, state = tiny.task().sample(12, seed=0), torch.random.get_rng_state()
    one = task2vec(tiny.base(), data)
    assert np.array_equal(one, task2vec(tiny.base(), data)) and not np.array_equal(
        one, task2vec(tiny.base(), data, seed=1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_the_logistic_regression(classes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.integers(classes, size=40)
    weight, bias = fit_head(x.astype(np.float32), y)
    assert weight.shape == (classes, 6) and bias.shape == (classes,)
    p = (torch.from_numpy(x.astype(np.float32)).double() @ weight.T + bias).softmax(1)
    expected = LogisticRegression(max_iter=1000).fit(x.astype(np.float32).astype(float), y).predict_proba(x)
    np.testing.assert_allclose(p, expected, atol=1e-5)


def test_classes_without_images_take_no_part():
    d = tiny.task(0, 1, 2)
    some = d.train_labels < 2
    data = Data("animals", d.labels, d.train_images[some], d.train_labels[some], d.test_images, d.test_labels)
    np.testing.assert_array_equal(task2vec(tiny.base(), data), task2vec(tiny.base(), tiny.task(0, 1)))
    one = d.train_labels < 1
    data = Data("animals", d.labels, d.train_images[one], d.train_labels[one], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="one class"):
        task2vec(tiny.base(), data)
