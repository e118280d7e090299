import gzip
import hashlib
import inspect
import os
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat
from sklearn.datasets import load_digits

import mvp.data
from mvp import datasets
from mvp.datasets import READERS, cifar10, cifar100, digits, fashion_mnist, load, svhn
from zoo.errors import DataError, OptionError

RNG = np.random.default_rng(0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------- CIFAR


def pickled(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, md5(path)]


def test_cifar100_in_torchvisions_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    pixels = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
    parts = {"train": (pixels[:4], [0, 2, 1, 0]), "test": (pixels[4:], [2, 0])}
    files = {s: pickled(folder / s, {"data": x, "fine_labels": y}) for s, (x, y) in parts.items()}
    meta = pickled(folder / "meta", {"fine_label_names": ["apple", "bear", "clock"]})
    known = torchvision.datasets.CIFAR100
    monkeypatch.setattr(known, "train_list", [files["train"]])
    monkeypatch.setattr(known, "test_list", [files["test"]])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": meta[1]})

    data = cifar100(tmp_path)
    assert data.labels == ("apple", "bear", "clock") and data.dataset == "cifar100"
    assert np.array_equal(data.train_images.numpy(), pixels[:4].reshape(4, 3, 32, 32))
    assert data.train_labels.tolist() == [0, 2, 1, 0] and data.test_labels.tolist() == [2, 0]
    few = cifar100(tmp_path, ["clock", "apple"])
    assert few.train_labels.tolist() == [1, 0, 1] and few.task.labels == ("clock", "apple")
    with pytest.raises(DataError, match="did you mean bear"):
        cifar100(tmp_path, ["beer", "apple"])

    (folder / "test").write_bytes(b"damaged")  # must be noticed before it is unpickled
    with pytest.raises(DataError, match="corrupted"):
        cifar100(tmp_path)


def test_cifar10_in_torchvisions_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    pixels = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
    files = [
        pickled(folder / name, {"data": pixels[i : i + 1], "labels": [i % 2]})
        for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"])
    ]
    meta = pickled(folder / "batches.meta", {"label_names": ["airplane", "automobile"]})
    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", files[:5])
    monkeypatch.setattr(known, "test_list", files[5:])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": meta[1]})
    data = cifar10(tmp_path)
    assert data.labels == ("airplane", "automobile") and data.train_labels.tolist() == [0, 1, 0, 1, 0]
    assert np.array_equal(data.train_images.numpy(), pixels[:5].reshape(5, 3, 32, 32))


@pytest.mark.parametrize(("reader", "folder"), [(cifar10, "cifar-10-batches-py"), (cifar100, "cifar-100-python")])
def test_cifar_says_what_its_folder_lacks(tmp_path, reader, folder):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        reader(tmp_path)
    text = str(caught.value)
    assert all(part in text for part in (str(tmp_path), "notes.txt", folder, "train*.parquet", "download=True"))


def test_the_real_cifar100():
    root = os.environ.get("MVP_ZOO_CIFAR100")
    if not root:
        pytest.skip("set MVP_ZOO_CIFAR100 to a folder with CIFAR-100")
    data = cifar100(root)
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert len(data.labels) == 100 and data.labels[:3] == ("apple", "aquarium_fish", "baby")
    assert data.train_labels.bincount().tolist() == [500] * 100 and data.test_labels.bincount().tolist() == [100] * 100
    mean = data.train_images[::10].double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.5071, 0.4865, 0.4409], dtype=torch.float64), atol=0.005)
    few, whole = cifar100(root, ["whale", "dolphin"]), data.subset(["whale", "dolphin"])
    assert torch.equal(few.train_images, whole.train_images) and torch.equal(few.test_labels, whole.test_labels)


# ---------------------------------------------------------------------------------------- SVHN, Fashion-MNIST


def test_svhn(tmp_path, monkeypatch):
    parts, known = {}, {}
    for split, n in (("train", 5), ("test", 12)):
        x = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = np.arange(1, n + 1) % 10
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": np.where(y == 0, 10, y)[:, None].astype(np.uint8)})
        parts[split] = (x, y)
        known[split] = ["", f"{split}_32x32.mat", md5(tmp_path / f"{split}_32x32.mat")]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    data = svhn(tmp_path)
    assert data.labels == tuple("0123456789")
    for split, (x, y) in parts.items():
        assert np.array_equal(getattr(data, f"{split}_images").numpy(), x.transpose(3, 2, 0, 1))
        assert getattr(data, f"{split}_labels").tolist() == y.tolist()
    assert svhn(tmp_path, ["2", "1"]).test_labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"no such folder; expected train_32x32\.mat and test_32x32\.mat"):
        svhn(tmp_path / "nowhere")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("inner", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(tmp_path, inner, packed):
    images = {s: RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8) for s in ("train", "t10k")}
    labels = np.array([9, 0, 3, 9], np.uint8)
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    for split, pixels in images.items():
        for name, array in ((f"{split}-images-idx3-ubyte", pixels), (f"{split}-labels-idx1-ubyte", labels)):
            content = idx(array)
            file = tmp_path / inner / (name + ".gz" * packed)
            file.write_bytes(gzip.compress(content) if packed else content)
    data = fashion_mnist(tmp_path)
    assert data.labels[9] == "Ankle boot" and data.train_labels.tolist() == [9, 0, 3, 9]
    for c in range(3):
        assert np.array_equal(data.train_images[:, c].numpy(), images["train"])
        assert np.array_equal(data.test_images[:, c].numpy(), images["t10k"])
    assert fashion_mnist(tmp_path, ["Dress", "T-shirt/top"]).train_labels.tolist() == [1, 0]
    assert fashion_mnist(tmp_path, size=32).train_images.shape == (4, 3, 32, 32)

    file.write_bytes(gzip.compress(content[:-1]) if packed else content[:-1])
    with pytest.raises(DataError, match=r"damaged.*3 bytes"):
        fashion_mnist(tmp_path)
    file.write_bytes(b"\x1f\x8b" if packed else b"\0")
    with pytest.raises(DataError, match="no idx file"):
        fashion_mnist(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist(tmp_path)


# ---------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns():
    data = digits(size=8)
    pixels, target = load_digits(return_X_y=True)
    ours = {(int(y), x.numpy().tobytes()) for x, y in zip(data.train_images[:, 1], data.train_labels)}
    ours |= {(int(y), x.numpy().tobytes()) for x, y in zip(data.test_images[:, 1], data.test_labels)}
    theirs = np.floor(pixels * 255 / 16 + 0.5).astype(np.uint8)
    half = pixels * 255 / 16 % 1 == 0.5  # rounds to even
    theirs = np.where(half, 2 * np.round(pixels * 255 / 32), theirs).astype(np.uint8)
    assert ours == {(int(y), x.tobytes()) for x, y in zip(theirs, target)}
    assert len(data.train_images) + len(data.test_images) == 1797


def test_digits_are_enlarged_and_split_by_class():
    data = digits()
    assert data.train_images.shape[1:] == (3, 32, 32) and data.train_images.dtype == torch.uint8
    assert data.train_images.min() == 0 and data.train_images.max() == 255
    total = np.bincount(load_digits().target)
    assert data.test_labels.bincount().tolist() == [round(n * 0.25) for n in total]
    again, other = digits(), digits(seed=1)
    assert torch.equal(again.test_images, data.test_images) and not torch.equal(other.test_images, data.test_images)
    assert data.task.labels == tuple("0123456789") and None not in data.task.synsets


def test_a_digit_keeps_its_split_whichever_others_are_taken():
    whole, few = digits(size=8), digits(["7", "3"], size=8)
    assert torch.equal(few.test_images, whole.subset(["7", "3"]).test_images)
    assert few.labels == ("7", "3")


# ---------------------------------------------------------------------------------------- by name


def test_load_calls_the_reader_of_that_name(tmp_path):
    data = load("digits", size=8, classes=["1", "2"])
    assert data.labels == ("1", "2") and data.train_images.shape[-1] == 8
    with pytest.raises(DataError, match="cub200: not in"):
        load("cub200", tmp_path)


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(OptionError, match=r"no data set 'cifar1000'.*Did you mean cifar100") as caught:
        load("cifar1000", tmp_path)
    assert all(name in str(caught.value) for name in READERS)
    with pytest.raises(OptionError, match="image_folder and hub_parquet read any other"):
        load("mnist3d", tmp_path)
    with pytest.raises(OptionError) as caught:
        load("hub_parquet", colour=1, depth=2)
    assert caught.value.problems == (
        "hub_parquet has no option 'colour'", "hub_parquet has no option 'depth'",
        "hub_parquet needs its folder (root)", "hub_parquet needs dataset",
    )  # fmt: skip
    with pytest.raises(OptionError, match="has no folder"):
        load("digits", tmp_path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_takes_classes_and_fetches_nothing_unasked(name):
    parameters = inspect.signature(READERS[name]).parameters
    assert parameters["classes"].default is None
    assert "download" not in parameters or parameters["download"].default is False
    assert READERS[name].__name__ == name and "Raises:" in READERS[name].__doc__


@pytest.mark.parametrize("name", [*sorted(READERS), "load", "arrays"])
def test_every_reader_is_found_in_mvp_data(name):
    if name == "arrays":
        assert mvp.data.arrays is mvp.readers.arrays
    else:
        assert getattr(mvp.data, name) is (READERS.get(name) or datasets.load)
    assert name in dir(mvp.data)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'cifar1000'"):
        _ = mvp.data.cifar1000
