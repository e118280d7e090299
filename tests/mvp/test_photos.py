import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mvp.photos import caltech256, cub200, fgvc_aircraft, flowers102, imagenet_folder, oxford_pets
from zoo.errors import DataError, OptionError


def save(path, colour, size=(12, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path, format="PNG")


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def colours(images):
    """The value of each one-coloured image; fails if it has several."""
    flat = images.flatten(1)
    assert bool((flat == flat[:, :1]).all())
    return flat[:, 0].tolist()


# ---------------------------------------------------------------------------------------- FGVC-Aircraft


@pytest.fixture
def aircraft(tmp_path):
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    write(folder / "variants.txt", "707-320", "F/A-18", "A330-300")
    write(folder / "manufacturers.txt", "Boeing", "McDonnell Douglas", "Airbus")
    variants, makers = ("707-320", "F/A-18", "A330-300"), ("Boeing", "McDonnell Douglas", "Airbus")
    for s, split in enumerate(("trainval", "test")):
        numbers = [f"{100 * s + i:07d}" for i in range(6)]
        write(folder / f"images_variant_{split}.txt", *(f"{n} {variants[i % 3]}" for i, n in enumerate(numbers)))
        write(folder / f"images_manufacturer_{split}.txt", *(f"{n} {makers[i % 3]}" for i, n in enumerate(numbers)))
        for i, n in enumerate(numbers):
            save(folder / "images" / f"{n}.jpg", 100 * s + i, (30, 40))
    return tmp_path


def test_aircraft_variants(aircraft):
    data = fgvc_aircraft(aircraft, size=8)
    assert data.labels == ("707-320", "F/A-18", "A330-300") and data.dataset == "fgvc_aircraft"
    assert colours(data.train_images) == list(range(6)) and data.train_labels.tolist() == [0, 1, 2] * 2
    assert colours(data.test_images) == list(range(100, 106))
    for inner in ("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/data"):
        assert colours(fgvc_aircraft(aircraft / inner, size=8).train_images) == list(range(6))


def test_aircraft_manufacturers_and_classes(aircraft):
    data = fgvc_aircraft(aircraft, ["Airbus", "McDonnell Douglas"], level="manufacturer", size=8)
    assert colours(data.train_images) == [1, 2, 4, 5] and data.train_labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(OptionError, match="variant, family, manufacturer"):
        fgvc_aircraft(aircraft, level="airline")
    with pytest.raises(DataError, match=r"families\.txt is missing"):
        fgvc_aircraft(aircraft, level="family")


def test_aircraft_banners_are_cut_off(aircraft):
    file = aircraft / "fgvc-aircraft-2013b" / "data" / "images" / "0000000.jpg"
    pixels = np.full((30, 10, 3), 255, np.uint8)
    pixels[:10] = 7
    Image.fromarray(pixels).save(file, format="PNG")
    assert colours(fgvc_aircraft(aircraft, size=10).train_images)[0] == 7


def test_annotations_that_do_not_fit_together(aircraft):
    write(aircraft / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt", "0000100 Concorde")
    with pytest.raises(DataError, match=r"do not fit together.*Concorde"):
        fgvc_aircraft(aircraft)


def test_missing_photographs_are_named(aircraft):
    for name in ("0000003", "0000005"):
        (aircraft / "fgvc-aircraft-2013b" / "data" / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match="2 of 6 images") as caught:
        fgvc_aircraft(aircraft, size=8)
    assert [name in p for name, p in zip(("0000003", "0000005"), caught.value.problems)] == [True, True]


# ---------------------------------------------------------------------------------------- Caltech-256


@pytest.fixture
def caltech(tmp_path):
    for c, name in enumerate(("001.ak47", "002.american-flag", "257.clutter")):
        for i in range(8):
            save(tmp_path / "256_ObjectCategories" / name / f"{c + 1:03d}_{i + 1:04d}.jpg", 10 * c + i)
    (tmp_path / "256_ObjectCategories" / "002.american-flag" / "RENAME2").mkdir()
    return tmp_path


def test_caltech_is_split_by_a_seed_and_leaves_the_clutter_out(caltech):
    data = caltech256(caltech, size=8, train_per_class=5)
    assert data.labels == ("ak47", "american-flag")
    train, test = colours(data.train_images), colours(data.test_images)
    assert sorted(train + test) == [*range(8), *range(10, 18)] and len(train) == 10
    assert [t // 10 for t in test] == data.test_labels.tolist()
    again = caltech256(caltech / "256_ObjectCategories", size=8, train_per_class=5)
    assert colours(again.test_images) == test
    seeds = [tuple(colours(caltech256(caltech, size=8, train_per_class=5, seed=s).test_images)) for s in range(4)]
    assert len(set(seeds)) > 1


def test_caltech_classes_keep_their_split(caltech):
    whole = caltech256(caltech, size=8, train_per_class=5, clutter=True)
    assert whole.labels == ("ak47", "american-flag", "clutter")
    few = caltech256(caltech, ["clutter", "ak47"], size=8, train_per_class=5, clutter=True)
    test = colours(whole.test_images)
    assert sorted(colours(few.test_images)) == [t for t in test if t // 10 != 1]
    assert few.test_labels.tolist() == [1 if t < 10 else 0 for t in colours(few.test_images)]


def test_caltech_with_too_few_images(caltech):
    with pytest.raises(DataError, match="too few images") as caught:
        caltech256(caltech)
    assert caught.value.problems == ("ak47: 8", "american-flag: 8")
    with pytest.raises(DataError, match="no class 'clutter'"):
        caltech256(caltech, ["clutter", "ak47"])
    with pytest.raises(OptionError, match="train_per_class"):
        caltech256(caltech, train_per_class=0)


# ---------------------------------------------------------------------------------------- CUB-200


@pytest.fixture
def birds(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    paths = [f"{names[c]}/bird {i}.jpg" for c in range(3) for i in range(4)]
    write(folder / "classes.txt", *(f"{c + 1} {name}" for c, name in enumerate(names)))
    write(folder / "images.txt", *(f"{i + 1} {path}" for i, path in enumerate(paths)))
    write(folder / "image_class_labels.txt", *(f"{i + 1} {i // 4 + 1}" for i in range(12)))
    write(folder / "train_test_split.txt", *(f"{i + 1} {int(i % 4 != 1)}" for i in range(12)))
    for i, path in enumerate(paths):
        save(folder / "images" / path, i)
    return tmp_path


@pytest.mark.parametrize("inner", [".", "CUB_200_2011"])
def test_cub_uses_its_own_split(birds, inner):
    data = cub200(birds / inner, size=8)
    assert data.labels == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    assert colours(data.train_images) == [0, 2, 3, 4, 6, 7, 8, 10, 11]
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert colours(data.test_images) == [1, 5, 9]


def test_cub_classes(birds):
    data = cub200(birds, ["Sooty Albatross", "Black footed Albatross"], size=8)
    assert colours(data.test_images) == [1, 9] and data.test_labels.tolist() == [1, 0]


def test_cub_says_what_its_folder_lacks(birds):
    (birds / "CUB_200_2011" / "images.txt").unlink()
    (birds / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match="not complete") as caught:
        cub200(birds)
    assert caught.value.problems == ("images.txt is missing", "train_test_split.txt is missing")
    with pytest.raises(DataError, match=r"got no such folder; expected a folder with images\.txt"):
        cub200(birds / "nowhere")


# ---------------------------------------------------------------------------------------- Flowers-102 and Pets


def test_flowers_train_on_both_training_splits(tmp_path):
    folder = tmp_path / "flowers-102"
    for i in range(1, 8):
        save(folder / "jpg" / f"image_{i:05d}.jpg", i)
    labels = np.array([[2, 1, 2, 1, 1, 2, 102]], np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {"trnid": [[3, 2]], "valid": [[4]], "tstid": [[1, 5, 6, 7]]})
    data = flowers102(tmp_path, ["pink primrose", "hard-leaved pocket orchid"], size=8)
    assert colours(data.train_images) == [3, 2, 4] and data.train_labels.tolist() == [1, 0, 0]
    assert colours(data.test_images) == [1, 5, 6] and data.test_labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="100 of 102 classes have no train image"):
        flowers102(folder, size=8)
    savemat(folder / "setid.mat", {"trnid": [[3, 9]], "valid": [[4]], "tstid": [[1]]})
    with pytest.raises(DataError, match="do not fit together"):
        flowers102(tmp_path)


def test_pets_breeds(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    rows = ["american_bulldog_10 2 2 1", "Abyssinian_100 1 1 1", "Abyssinian_2 1 1 1", "american_bulldog_3 2 2 1"]
    write(folder / "annotations" / "trainval.txt", *rows[:2])
    write(folder / "annotations" / "test.txt", "#Image CLASS-ID SPECIES BREED ID", *rows[2:])
    for i, row in enumerate(rows):
        save(folder / "images" / f"{row.split()[0]}.jpg", i)
    data = oxford_pets(tmp_path, size=8)
    assert data.labels == ("Abyssinian", "American Bulldog")
    assert colours(data.train_images) == [0, 1] and data.train_labels.tolist() == [1, 0]
    assert colours(data.test_images) == [2, 3] and data.test_labels.tolist() == [0, 1]
    data = oxford_pets(folder, ["American Bulldog", "Abyssinian"], size=8)
    assert data.train_labels.tolist() == [0, 1]


# ---------------------------------------------------------------------------------------- ImageNet


@pytest.fixture
def imagenet(tmp_path):
    for c, wnid in enumerate(("n01440764", "n02124075", "n02124076")):  # the last is no noun of WordNet 3.0
        for s, split in enumerate(("train", "val")):
            for i in range(3):
                save(tmp_path / split / wnid / f"{wnid}_{i}.JPEG", 100 * s + 10 * c + i)
    return tmp_path


def test_imagenet_classes_by_wnid_and_name(imagenet):
    data = imagenet_folder(imagenet, ["n02124075", "tench.n.01"], size=8)
    assert data.labels == ("egyptian_cat.n.01", "tench.n.01") and data.synsets == ("n02124075", "n01440764")
    assert data.dataset == "imagenet" and data.task.synsets == data.synsets
    assert colours(data.train_images) == [10, 11, 12, 0, 1, 2]
    assert colours(data.test_images) == [110, 111, 112, 100, 101, 102]


def test_imagenet_with_a_limit(imagenet):
    data = imagenet_folder(imagenet, limit=2, size=8)
    assert colours(data.train_images) == [0, 1, 10, 11, 20, 21]
    assert data.labels[2] == "n02124076" and data.synsets == ("n01440764", "n02124075", None)


def test_imagenet_is_never_read_whole_by_accident(imagenet):
    with pytest.raises(OptionError, match="classes or limit"):
        imagenet_folder(imagenet)
    with pytest.raises(DataError, match="no class 'n99999999'"):
        imagenet_folder(imagenet, ["n99999999", "n02124075"])


def test_imagenet_with_an_unsorted_validation_folder(tmp_path):
    save(tmp_path / "train" / "n01440764" / "a.JPEG", 0)
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(DataError, match="val sorted into folders"):
        imagenet_folder(tmp_path, limit=1)
