"""zoo.labels: every curated entry exists, the order of look-ups, suggestions, and what a query needs."""

import json
from types import SimpleNamespace

import pytest

from zoo import labels, wordnet
from zoo.datafiles import data_path
from zoo.errors import UnknownLabelsError
from zoo.labels import Resolution, normalise, require, resolve, suggest, table_of, to_wnids

CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "fashion_mnist": 10,
    "caltech101": 102,
    "caltech256": 257,
    "oxford_pets": 37,
    "flowers102": 102,
    "cub200": 200,
}
# First senses of these are something else: shutout, stamp, the pelt, the flesh, the tabulated data ...
CORRECTED = (
    "beaver.n.07 castle.n.02 dolphin.n.02 flatfish.n.02 leopard.n.02 lobster.n.02 otter.n.02 plate.n.04 raccoon.n.02 "
    "ray.n.07 seal.n.09 shrew.n.02 skunk.n.04 sweet_pepper.n.02 table.n.02 television_receiver.n.01 tiger.n.02 "
    "trout.n.02 turtle.n.02 whale.n.02 female_child.n.01 cloud.n.02 lamp.n.02 mushroom.n.05 maple.n.02 fish.n.01"
)


def raw(name):
    return json.loads(data_path(f"labels/{name}.json").read_text(encoding="utf-8"))


def under(wnid, *roots):
    t = wordnet.taxonomy()
    return any(t.find(root) in t.up(t.find(wnid)) for root in roots)


def one(label, dataset=None):
    return resolve([label], dataset)[0]


@pytest.mark.parametrize("name", labels.TABLES)
def test_every_curated_entry_exists_and_agrees(name):
    content = raw(name)
    assert content["dataset"] and isinstance(content["aliases"], list) and content["note"]
    assert len({normalise(label) for label in content["labels"]}) >= len(content["labels"]) - 1
    for label, entry in content["labels"].items():
        if entry["how"] == "none":
            assert entry["wnid"] is None and entry["synset"] is None
            continue
        assert entry["how"] in ("exact", "nearest"), label
        assert wordnet.wnid(entry["synset"]) == entry["wnid"], label
        assert wordnet.synset_name(entry["wnid"]) == entry["synset"], label


@pytest.mark.parametrize(("name", "classes"), CLASSES.items())
def test_tables_are_complete(name, classes):
    found = {label.removesuffix(" 101") for label in labels.table(name)}
    assert len(found) >= classes, sorted(found)
    if name not in ("caltech256", "fashion_mnist"):
        assert len(raw(name)["labels"]) == classes


def test_all_files_are_listed():
    assert {p.stem for p in data_path("labels").glob("*.json")} == set(labels.TABLES)


def test_entries_are_of_the_right_kind():
    for label, found in labels.table("oxford_pets").items():
        assert under(found.wnid, "cat.n.01", "dog.n.01"), label
    for label, found in labels.table("cub200").items():
        assert under(found.wnid, "bird.n.01"), label
    for label, found in labels.table("flowers102").items():
        # WordNet files the trumpet creeper under its family, a group.
        assert under(found.wnid, "plant.n.02") or label == "trumpet creeper", label
    for label, found in labels.table("digits").items():
        assert under(found.wnid, "digit.n.01"), label
    clothes = ("clothing.n.01", "footwear.n.02", "garment.n.01", "bag.n.04")
    assert all(under(found.wnid, *clothes) for found in labels.table("fashion_mnist").values())


def test_cifar100_has_the_corrected_senses():
    senses = {found.synset for found in labels.table("cifar100").values()}
    assert set(CORRECTED.split()) <= senses
    assert one("aquarium_fish", "cifar100").nearest


def test_order_of_look_ups():
    assert one("n02084071") == Resolution("n02084071", "n02084071", "given")
    assert one("dog.n.01", "cifar10").how == "given"
    assert one("seal", "CIFAR-100").how == "table" and one("seal", "CIFAR-100").synset == "seal.n.09"
    assert one("seal").how == one("seal", "no such data set").how == "other_table"
    assert one("bat", "caltech256").synset == "bat.n.01"
    # The same word in two data sets: each has its own sense, and the earlier table serves the rest.
    assert one("mushroom", "caltech256").synset == "mushroom.n.03"
    assert one("mushroom", "cifar100").synset == one("mushroom").synset == "mushroom.n.05"
    assert one("sofa bed").how == "lemma" and one("sofa bed").synset == wordnet.senses("sofa bed")[0]
    head = one("my shiny saucepan")
    assert (head.how, head.synset, head.nearest) == ("head", wordnet.senses("saucepan")[0], True)
    assert one("tin of sardines").synset == wordnet.senses("tin")[0]
    assert one("flibbertigibbt") == Resolution("flibbertigibbt", None, "unmapped")
    assert one("dog.n.99").how == one("n99999999").how == "unmapped"


@pytest.mark.parametrize(
    ("label", "dataset", "synset"),
    [
        ("pickup_truck", "cifar100", "pickup.n.01"),
        ("Pickup Truck", "uoft-cs/cifar100", "pickup.n.01"),
        ("001.ak47", "Caltech256", "kalashnikov.n.01"),
        ("251.airplanes-101", "caltech256", "airplane.n.01"),
        ("airplanes", "Caltech-101", "airplane.n.01"),
        ("T-shirt/top", "FashionMNIST", "jersey.n.03"),
        ("Ankle boot", "fashion_mnist", "boot.n.01"),
        ("0 - zero", "MNIST", "zero.n.02"),
        ("7", "SVHN", "seven.n.01"),
        ("Staffordshire Bull Terrier", "OxfordIIITPet", "staffordshire_bullterrier.n.01"),
        ("great_pyrenees", "oxford-iiit-pet", "great_pyrenees.n.01"),
        ("pink-yellow dahlia?", "Flowers102", "dahlia.n.01"),
        ("colt's foot", "flowers", "coltsfoot.n.02"),
        ("004.Groove_billed_Ani", "CUB_200_2011", "ani.n.01"),
        ("golden retriever", "ImageNet", "golden_retriever.n.01"),
        ("golden retriever", None, "golden_retriever.n.01"),
        ("tench, Tinca tinca", None, "tench.n.01"),
        ("saucepans", None, "saucepan.n.01"),
        ("geese", None, "goose.n.01"),
    ],
)
def test_spellings(label, dataset, synset):
    assert one(label, dataset).synset == synset


def test_synonyms_pick_the_sense_they_share():
    assert one("pawl, detent, click").synset == "pawl.n.01"
    assert wordnet.senses("click")[0] != "pawl.n.01"
    assert one("click, detent").synset == "pawl.n.01"


def test_imagenet_names_resolve_to_their_wnids_through_lemmas_too():
    names = raw("imagenet")["labels"]
    through_lemmas = sum(labels._by_lemma(normalise(name)) is not None for name in names)
    assert through_lemmas >= 0.99 * len(names)
    assert all(one(name, "imagenet").wnid == entry["wnid"] for name, entry in names.items())
    assert one("crane", "imagenet").how == "lemma", "stands for two classes"


def test_background_classes_stay_unmapped_in_their_data_set_only():
    assert one("257.clutter", "caltech256").wnid is None
    assert one("BACKGROUND_Google", "caltech101").how == "unmapped"
    assert one("clutter").how == "lemma"


def test_resolve_never_fails():
    odd = ["", " ", "?", "1234", "a" * 500, "'; drop table", "..", "n1", "of", "été", "日本", ",", "_", "-"]
    assert [r.label for r in resolve(odd)] == odd
    assert resolve([]) == []


def test_table_of():
    assert table_of(None) is None and table_of("my own photos") is None
    assert [table_of(n) for n in ("CIFAR-10", "cifar_10", "uoft-cs/cifar10")] == ["cifar10"] * 3
    assert table_of("cifar100") == "cifar100"


def test_suggestions():
    assert "dalmatian" in suggest("dalmation")
    assert "elephant" in suggest("purple elefant")
    assert len(suggest("dolfin", n=2)) <= 2
    assert suggest("zzzzqqqq") == []


def test_to_wnids():
    assert to_wnids(["dog.n.01", None, "n02121620"]) == ["n02084071", None, "n02121620"]
    with pytest.raises(UnknownLabelsError) as caught:
        to_wnids(["dog.n.77", "cat.n.01", "katz.n.01"])
    assert len(caught.value.problems) == 2


def test_require_lists_every_unmapped_label():
    task = SimpleNamespace(labels=["dog", "dalmation", "zzzzqqqq"], synsets=["n02084071", None, None])
    with pytest.raises(UnknownLabelsError) as caught:
        require(task)
    message = str(caught.value)
    assert "2 of 3" in message and "'dalmatian'" in message and "'zzzzqqqq'" in message and "synsets=" in message
    assert "'dog'" not in "\n".join(caught.value.problems)
    assert require(SimpleNamespace(labels=["dog"], synsets=["n02084071"])) == ["n02084071"]
    looked_up = SimpleNamespace(labels=["mushroom"], synsets=None, dataset="caltech256")
    assert require(looked_up) == [wordnet.wnid("mushroom.n.03")]
