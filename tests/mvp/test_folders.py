from urllib.error import URLError

import pytest
import torchvision

from mvp.datasets import cifar10, fashion_mnist
from mvp.folders import annotations, class_folders, find_folder, image_files, lines, listing
from mvp.photos import caltech256, fgvc_aircraft, flowers102, oxford_pets
from zoo.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_find_folder_takes_the_first_complete_one(tmp_path):
    touch(tmp_path, "outer/inner/a", "outer/inner/b", "outer/a")
    assert find_folder("x", tmp_path / "outer", (".", "inner"), ["a", "b"]) == tmp_path / "outer" / "inner"
    assert find_folder("x", tmp_path / "outer", (".", "inner"), ["a"]) == tmp_path / "outer"


def test_find_folder_says_what_the_likeliest_lacks(tmp_path):
    touch(tmp_path, "inner/a", "inner/b", "c")
    with pytest.raises(DataError, match=r"inner is not complete") as caught:
        find_folder("x", tmp_path, (".", "inner"), ["a", "b", "c", "d"])
    assert caught.value.problems == ("c is missing", "d is missing")
    with pytest.raises(DataError, match=r"got c, inner/; expected a folder with e, f, or with it in inner") as caught:
        find_folder("x", tmp_path, (".", "inner"), ["e", "f"], can_download=True)
    assert "download=True" in str(caught.value)


def test_listing_is_short(tmp_path):
    assert listing(tmp_path / "nowhere") == "no such folder"
    assert listing(tmp_path) == "an empty folder"
    touch(tmp_path, *"abcdefghi", "z/file")
    assert listing(tmp_path) == "a, b, c, d, e, f, g, h, ... (10 in all)"


def test_class_folders_and_image_files(tmp_path):
    touch(tmp_path, "dog/2.jpg", "dog/1.PNG", "dog/notes.txt", "dog/.3.jpg", "cat/x", ".git/x", "readme.jpg")
    assert class_folders(tmp_path, "x") == ["cat", "dog"]
    assert [p.name for p in image_files(tmp_path / "dog")] == ["1.PNG", "2.jpg"]
    assert image_files(tmp_path / "fox") == []


def test_annotations_turns_only_what_the_files_cause_into_a_data_error(tmp_path):
    (tmp_path / "list.txt").write_text(" 1 a \n\n2 b\n")
    assert lines(tmp_path / "list.txt") == ["1 a", "2 b"]
    with pytest.raises(DataError, match="do not fit together; got KeyError: 7"), annotations("x", tmp_path):
        _ = {}[7]
    inner = DataError("said better already")
    with pytest.raises(DataError) as caught, annotations("x", tmp_path):
        raise inner
    assert caught.value is inner
    with pytest.raises(TypeError), annotations("x", tmp_path):
        _ = None + 1


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        (cifar10, "CIFAR10"),
        (fashion_mnist, "FashionMNIST"),
        (caltech256, "Caltech256"),
        (fgvc_aircraft, "FGVCAircraft"),
        (flowers102, "Flowers102"),
        (oxford_pets, "OxfordIIITPet"),
    ],
)
def test_download_is_torchvisions_and_a_failure_is_a_data_error(tmp_path, monkeypatch, reader, name):
    calls = []

    class Offline:
        classes = ()

        def __init__(self, root, **options):
            calls.append((root, options["download"]))
            raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets, name, Offline)
    with pytest.raises(DataError, match="no network"):
        reader(tmp_path, download=True)
    assert calls == [(str(tmp_path), True)]
