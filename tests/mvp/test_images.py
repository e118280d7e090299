import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as tv

from mvp.images import check_count, decode, fraction_of, held_out, index_labels, pick, read_images, split_files
from zoo.errors import DataError, OptionError

RNG = np.random.default_rng(0)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, format="PNG", **options)
    return path


def test_decode_takes_the_central_square(tmp_path):
    pixels = RNG.integers(0, 256, (20, 41, 3), dtype=np.uint8)
    file = save(tmp_path / "a.jpg", pixels[:, :40])
    assert np.array_equal(decode(file, 20), pixels[:, 10:30])
    assert np.array_equal(decode(file, None), pixels[:, :40])
    assert np.array_equal(decode(file.read_bytes(), None, cut=5), pixels[:15, :40])


def test_decode_equals_resize_of_the_shorter_side_and_a_centre_crop(tmp_path):
    pixels = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = save(tmp_path / "a.png", pixels)
    expected = tv.center_crop(tv.resize(Image.fromarray(pixels), 24), [24, 24])
    # Only the outermost column can differ: there the crop ends in the middle of the filter's support.
    assert np.array_equal(decode(file, 24)[:, 1:-1], np.asarray(expected)[:, 1:-1])


def test_decode_brings_every_mode_to_rgb(tmp_path):
    grey = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
    assert np.array_equal(decode(save(tmp_path / "grey.png", grey), None), np.stack([grey] * 3, axis=-1))
    rgba = RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    assert np.array_equal(decode(save(tmp_path / "rgba.png", rgba), None), rgba[..., :3])
    one_bit = tmp_path / "bit.png"
    Image.fromarray(grey > 127).save(one_bit)
    assert set(np.unique(decode(one_bit, None))) <= {0, 255}


def test_images_of_sixteen_bits_are_refused_not_clipped(tmp_path):
    file = save(tmp_path / "deep.png", np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode(file, None)


def test_unreadable_images_are_all_named(tmp_path):
    good = save(tmp_path / "good.png", np.zeros((8, 8, 3), np.uint8))
    whole = save(tmp_path / "whole.png", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    names = ["good.png", "half.png", "text.jpg", "empty.jpg", "missing.jpg"]
    with pytest.raises(DataError, match="4 of 5 images") as caught:
        read_images([[(name, tmp_path / name) for name in names]], 5, 8)
    assert [p.split(":")[0] for p in caught.value.problems] == names[1:]
    assert read_images([[("good", good)], [("again", good.read_bytes())]], 2, 8).shape == (2, 3, 8, 8)


def test_a_long_list_of_unreadable_images_is_cut_short(tmp_path):
    with pytest.raises(DataError, match="and 5 more"):
        read_images([[(str(i), None) for i in range(25)]], 25, 8)


def test_images_of_several_sizes_need_a_size(tmp_path):
    files = [save(tmp_path / f"{h}.png", np.full((h, 8, 3), h, np.uint8)) for h in (8, 10)]
    sources = [[(f.name, f) for f in files]]
    with pytest.raises(DataError, match="10 x 8, the first image has 8 x 8") as caught:
        read_images(sources, 2, None)
    assert "size=" in str(caught.value)
    read = read_images(sources, 2, 4)
    assert read.dtype == torch.uint8
    assert read[:, 0, 0, 0].tolist() == [8, 10]


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_test_split_is_drawn_class_by_class(counts, share, seed, shuffle):
    names = [f"class {c}" for c in range(len(counts))]
    order = [c for c, n in enumerate(counts) for _ in range(n)]
    shuffle.shuffle(order)
    labels = np.array(order)
    held = held_out(labels, names, fraction_of(share), seed, "x")
    for c, n in enumerate(counts):
        assert held[labels == c].sum() == min(max(1, round(share * n)), n - 1)
        # The same images of a class are held out when it is read alone, whatever its index then is.
        assert np.array_equal(held[labels == c], held_out(np.zeros(n, int), [names[c]], fraction_of(share), seed, "x"))


def test_the_test_split_depends_on_the_seed_and_the_class():
    def draw(seed, name):
        return held_out(np.zeros(100, int), [name], fraction_of(0.5), seed, "x").tolist()

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(1, "a")
    assert draw(0, "a") != draw(0, "b")


def test_classes_too_small_to_split_are_all_named(tmp_path):
    files = [(tmp_path / str(i), c) for i, c in enumerate([0, 1, 1, 2])]
    with pytest.raises(DataError) as caught:
        split_files(files, ["a", "b", "c"], fraction_of(0.5), 0, "x")
    assert caught.value.problems == ("a: 1", "c: 1")
    train, test = split_files(files[1:3], ["a", "b", "c"], fraction_of(0.5), 0, "x")
    assert sorted(train + test) == files[1:3] and len(train) == len(test) == 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(OptionError, match="test_fraction"):
        fraction_of(share)


@pytest.mark.parametrize("value", [0, -1, 2.0, "32", True, None])
def test_counts_are_positive_integers(value):
    with pytest.raises(OptionError, match="size is out of range"):
        check_count("size", value)
    check_count("size", 1)


def test_pick_finds_classes_by_name_and_index():
    names = ["cat", "dog", "bird"]
    assert pick(names, None, "x") == [0, 1, 2]
    assert pick(names, ["bird", 0, np.int64(1)], "x") == [2, 0, 1]


def test_pick_lists_every_wrong_class_with_suggestions():
    with pytest.raises(DataError) as caught:
        pick(["cat", "dog", "bird"], ["cot", "dog", "dog", 3, -1, None], "pets")
    assert caught.value.problems == (
        "no class 'cot'; did you mean cat?", "'dog' is given twice", "no class 3", "no class -1", "no class None",
    )  # fmt: skip
    assert "cat, dog, bird" in str(caught.value)
    with pytest.raises(DataError, match="no class is given"):
        pick(["cat"], [], "pets")
    with pytest.raises(DataError, match="one text"):
        pick(["c", "a", "t"], "cat", "pets")


def test_labels_become_indices():
    names, index = index_labels({"train": np.array(["b", "a", "b"]), "test": np.array(["a"])}, None, "x")
    assert names == ["a", "b"] and index["train"].tolist() == [1, 0, 1] and index["test"].tolist() == [0]
    names, index = index_labels({"train": np.array([7, 3, 7])}, None, "x")
    assert names == ["3", "7"] and index["train"].tolist() == [1, 0, 1] and index["train"].dtype == np.int64
    names, index = index_labels({"train": np.array([1, 0]), "test": np.array(["no", "yes"])}, ["no", "yes"], "x")
    assert index["train"].tolist() == [1, 0] and index["test"].tolist() == [0, 1]


def test_labels_that_are_no_class_are_listed_by_split():
    with pytest.raises(DataError) as caught:
        index_labels({"train": np.array([0, 5, 5, -1]), "test": np.array([0.0, np.nan])}, ["a", "b"], "x")
    assert caught.value.problems == (
        "train: 3 labels are none of the 2 classes: -1, 5",
        "test: 2 labels are none of the 2 classes: 0.0, nan",
    )
    with pytest.raises(DataError, match="test: 1 labels"):
        index_labels({"train": np.array(["a", "b"]), "test": np.array(["c"])}, None, "x")
