import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mvp.readers import arrays, hub_parquet, image_folder
from zoo.errors import DataError, OptionError

ANIMALS = ("bird", "cat", "dog")


def save(path, colour, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path, format="PNG")


def colours(images):
    """The value of each one-coloured image; fails if it has several."""
    flat = images.flatten(1)
    assert bool((flat == flat[:, :1]).all())
    return flat[:, 0].tolist()


def folder(root, splits=("train", "test"), n=3):
    """Images whose colour says 100 * split + 10 * class + number."""
    for s, split in enumerate(splits):
        for c, name in enumerate(ANIMALS):
            for i in range(n):
                save(root / split / name / f"{i}.png", 100 * s + 10 * c + i, (12, 12 + i))
    return root


# ---------------------------------------------------------------------------------------- image folders


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_image_folder_with_its_own_split(tmp_path, test):
    data = image_folder(folder(tmp_path / "zoo", ("train", test)), size=8)
    assert data.labels == ANIMALS and data.dataset == "zoo" and data.task.labels == ANIMALS
    assert data.train_images.shape == (9, 3, 8, 8)
    assert colours(data.train_images) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert colours(data.test_images) == [100, 101, 102, 110, 111, 112, 120, 121, 122]
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_image_folder_opens_only_the_classes_asked_for(tmp_path):
    root = folder(tmp_path)
    (root / "train" / "cat" / "0.png").write_bytes(b"damaged")
    data = image_folder(root, ["dog", "bird"], dataset="pets", size=8)
    assert data.labels == ("dog", "bird") and data.dataset == "pets"
    assert colours(data.train_images) == [20, 21, 22, 0, 1, 2]
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="cat"):
        image_folder(root, ["cat", "dog"], size=8)


def test_image_folder_takes_the_first_images_up_to_a_limit(tmp_path):
    data = image_folder(folder(tmp_path), limit=2, size=8)
    assert colours(data.train_images) == [0, 1, 10, 11, 20, 21]
    assert colours(data.test_images) == [100, 101, 110, 111, 120, 121]
    with pytest.raises(OptionError, match="limit"):
        image_folder(tmp_path, limit=0)


def test_image_folder_without_a_split_is_split_by_a_seed(tmp_path):
    root = folder(tmp_path, splits=(".",), n=10)
    data = image_folder(root, size=8, test_fraction=0.3, seed=4)
    train, test = colours(data.train_images), colours(data.test_images)
    assert sorted(train + test) == list(range(30)) and len(test) == 9
    assert [t // 10 for t in test] == data.test_labels.tolist()
    again, other = (image_folder(root, size=8, test_fraction=0.3, seed=seed) for seed in (4, 5))
    assert colours(again.test_images) == test != colours(other.test_images)
    alone = image_folder(root, ["dog", "cat"], size=8, test_fraction=0.3, seed=4)
    assert sorted(colours(alone.test_images)) == [t for t in test if t >= 10]
    assert len(image_folder(root, size=8, test_fraction=0.3, limit=2).test_images) == 6


def test_image_folder_ignores_what_is_no_image_or_hidden(tmp_path):
    root = folder(tmp_path)
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "._0.png").write_text("x")
    save(root / "train" / "cat" / "9.JPEG", 19)
    data = image_folder(root, size=8)
    assert data.labels == ANIMALS
    assert colours(data.train_images)[3:7] == [10, 11, 12, 19]


def test_image_folder_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    save(tmp_path / "flat" / "a.png", 0)
    with pytest.raises(DataError, match=r"no class folders.*got a\.png"):
        image_folder(tmp_path / "flat")
    root = folder(tmp_path / "half", ("train",))
    (root / "test").mkdir()
    with pytest.raises(DataError, match="no test folder with classes"):
        image_folder(root)
    root = folder(tmp_path / "empty")
    for split in ("train", "test"):
        (root / split / "fox").mkdir()
    (root / "train" / "wolf").mkdir()
    with pytest.raises(DataError, match="2 of 5 classes have no train image") as caught:
        image_folder(root, size=8)
    assert caught.value.problems == ("fox", "wolf")
    with pytest.raises(DataError, match="did you mean cat"):
        image_folder(root, ["cats", "dog"])
    with pytest.raises(OptionError, match="size"):
        image_folder(root, ["cat", "dog"], size=0)


# ---------------------------------------------------------------------------------------- Parquet


def png(colour, size=(6, 6)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def shard(path, rows, names=ANIMALS, image="img", label="fine_label", size=(6, 6)):
    """rows: (colour, label) pairs; written as the Hub writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": png(c, size) if isinstance(c, int) else c, "path": f"{c}.png"} for c, _ in rows]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(structs, struct), "coarse": [0] * len(rows), label: [c for _, c in rows]})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_hub_parquet_reads_shards_in_order(tmp_path):
    shard(tmp_path / "train-00001-of-00002.parquet", [(30, 0), (31, 2)])
    shard(tmp_path / "train-00000-of-00002.parquet", [(10, 2), (11, 1)])
    shard(tmp_path / "test-00000-of-00001.parquet", [(100, 0), (101, 1), (102, 2)])
    shard(tmp_path / "validation-00000-of-00001.parquet", [(200, 0), (201, 1), (202, 2)])
    data = hub_parquet(tmp_path, dataset="animals")
    assert data.labels == ANIMALS and data.dataset == "animals"
    assert colours(data.train_images) == [10, 11, 30, 31] and data.train_labels.tolist() == [2, 1, 0, 2]
    assert colours(data.test_images) == [100, 101, 102]
    assert colours(hub_parquet(tmp_path, dataset="animals", test="validation").test_images) == [200, 201, 202]
    assert data.train_images.shape[1:] == (3, 6, 6) and data.train_images.is_contiguous()


def test_hub_parquet_decodes_only_the_classes_asked_for(tmp_path):
    shard(tmp_path / "data" / "train.parquet", [(10, 2), (b"damaged", 1), (12, 0), (13, 2)])
    shard(tmp_path / "data" / "validation.parquet", [(100, 0), (101, 1), (102, 2)])
    data = hub_parquet(tmp_path, ["dog", "bird"], dataset="animals")
    assert data.labels == ("dog", "bird")
    assert colours(data.train_images) == [10, 12, 13] and data.train_labels.tolist() == [0, 1, 0]
    assert colours(data.test_images) == [100, 102] and data.test_labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"train\.parquet row 1"):
        hub_parquet(tmp_path, dataset="animals")


def test_hub_parquet_numbers_rows_across_batches(tmp_path):
    rows = [(i % 256, i % 3) for i in range(1100)]
    rows[1050] = (b"damaged", 0)
    shard(tmp_path / "train.parquet", rows)
    shard(tmp_path / "test.parquet", [(c, c) for c in range(3)])
    with pytest.raises(DataError, match=r"train\.parquet row 1050:"):
        hub_parquet(tmp_path, dataset="animals")
    data = hub_parquet(tmp_path, [1], dataset="animals")
    assert colours(data.train_images) == [i % 256 for i in range(1, 1100, 3)]


def test_hub_parquet_of_several_sizes_needs_a_size(tmp_path):
    shard(tmp_path / "train.parquet", [(10, 0), (11, 1), (12, 2)])
    shard(tmp_path / "test.parquet", [(100, 0), (101, 1), (102, 2)])
    shard(tmp_path / "train2.parquet", [(20, 0)], size=(9, 6))
    with pytest.raises(DataError, match="size="):
        hub_parquet(tmp_path, dataset="animals")
    data = hub_parquet(tmp_path, dataset="animals", size=4)
    assert data.train_images.shape == (4, 3, 4, 4) and colours(data.train_images) == [10, 11, 12, 20]


def test_hub_parquet_without_class_names_takes_the_values(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / f"{split}.parquet", [(1, "oak"), (2, "elm")], names=None, label="label")
    data = hub_parquet(tmp_path, dataset="trees")
    assert data.labels == ("elm", "oak") and data.train_labels.tolist() == [1, 0]


def test_hub_parquet_lists_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        hub_parquet(tmp_path / "nowhere", dataset="x")
    for config in ("a", "b"):
        shard(tmp_path / config / "train.parquet", [(1, 0)])
    with pytest.raises(DataError, match=r"several folders.*got a, b"):
        hub_parquet(tmp_path, dataset="x")
    with pytest.raises(DataError, match="no test split"):
        hub_parquet(tmp_path / "a", dataset="x")
    shard(tmp_path / "a" / "test.parquet", [(1, 0)], image="picture", label="kind")
    with pytest.raises(DataError, match="columns are missing") as caught:
        hub_parquet(tmp_path / "a", dataset="x")
    assert len(caught.value.problems) == 1 and "test.parquet has picture" in caught.value.problems[0]
    shard(tmp_path / "b" / "test.parquet", [(1, -1), (2, 0)])
    with pytest.raises(DataError, match="test: 1 labels are none of the 3 classes: -1"):
        hub_parquet(tmp_path / "b", dataset="x")
    with pytest.raises(DataError, match="have no train image"):
        shard(tmp_path / "b" / "test.parquet", [(2, 0)])
        hub_parquet(tmp_path / "b", dataset="x")


def test_an_image_that_lies_outside_the_file_is_an_error(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / f"{split}.parquet", [(1, 0), (None, 1), (2, 2)])
    with pytest.raises(DataError, match="a path without bytes"):
        hub_parquet(tmp_path, dataset="x")


# ---------------------------------------------------------------------------------------- arrays

RNG = np.random.default_rng(0)


def test_arrays_takes_stacks_and_lists_grey_and_rgb():
    rgb = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    grey = RNG.integers(0, 256, (2, 5, 6), dtype=np.uint8)
    data = arrays(rgb, [0, 1, 1, 0], grey, ["cat", "dog"], labels=["cat", "dog"], dataset="mine")
    assert data.dataset == "mine" and data.train_labels.tolist() == [0, 1, 1, 0] and data.test_labels.tolist() == [0, 1]
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), rgb)
    for c in range(3):
        assert np.array_equal(data.test_images[:, c].numpy(), grey)
    listed = arrays([rgb[0], grey[0], grey[1][..., None]], ["a", "b", "a"], rgb[:2], ["a", "b"])
    assert np.array_equal(listed.train_images[2, 1].numpy(), grey[1])
    assert listed.labels == ("a", "b")


def test_arrays_of_several_sizes_need_a_size():
    images = [np.full((h, 8), h, np.uint8) for h in (8, 12)]
    with pytest.raises(DataError, match=r"2 sizes \(12 x 8, 8 x 8\)"):
        arrays(images, [0, 1], images, [0, 1])
    data = arrays(images, [0, 1], images, [0, 1], size=4)
    assert data.train_images.shape == (2, 3, 4, 4) and colours(data.train_images) == [8, 12]


def test_arrays_without_a_test_split_draws_one():
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    data = arrays(images, [i % 2 for i in range(40)], test_fraction=0.25, seed=3)
    train, test = colours(data.train_images), colours(data.test_images)
    assert sorted(train + test) == list(range(40)) and len(test) == 10
    assert [t % 2 for t in test] == data.test_labels.tolist() and sum(data.test_labels.tolist()) == 5
    assert data.labels == ("0", "1")


def test_arrays_lists_everything_that_is_wrong():
    floats = RNG.random((3, 4, 4, 3))
    first = np.zeros((2, 3, 4, 4), np.uint8)
    with pytest.raises(DataError) as caught:
        arrays(floats, [0, 1], first, [0, 1, 1])
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in ("3 with dtype float64", "255", "train_labels: shape (2,) for 3", "channels go last", "test_labels"):
        assert part in text
    with pytest.raises(DataError, match="no images"):
        arrays([], [])
    with pytest.raises(DataError, match=r"shape \(4,\)"):
        arrays([np.zeros(4, np.uint8)], [0])
    with pytest.raises(OptionError, match="go together"):
        arrays(np.zeros((2, 4, 4), np.uint8), [0, 1], np.zeros((2, 4, 4), np.uint8))


def test_arrays_refuses_classes_without_images():
    images = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(DataError, match="1 of 3 classes have no train image"):
        arrays(images, [0, 0, 1, 1], images, [0, 1, 2, 0], labels=["a", "b", "c"])
    with pytest.raises(DataError, match="1 of 2 classes have no test image"):
        arrays(images, [0, 0, 1, 1], images, [0, 0, 0, 0])
    with pytest.raises(DataError, match="none of the 2 classes: 2"):
        arrays(images, [0, 0, 1, 2], images, [0, 1, 0, 1], labels=["a", "b"])


def test_the_result_does_not_alias_the_input():
    images = np.zeros((4, 4, 4, 3), np.uint8)
    data = arrays(images, [0, 1, 0, 1], images, [0, 1, 0, 1])
    images[:] = 9
    assert not torch.any(data.train_images)
