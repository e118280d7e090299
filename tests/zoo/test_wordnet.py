"""Class similarity against NLTK: a file of its values, and live where its corpus is."""

import csv
import gzip
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo import wordnet
from zoo.datafiles import data_path
from zoo.errors import CorruptionError, UnknownLabelsError
from zoo.wordnet import wup, wup_directed, wup_matrix

GOLDEN = Path(__file__).parent / "golden" / "wup_pairs.csv.gz"


def golden_pairs():
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        return [(r["kind"], r["a"], r["b"], float(r["wup_ab"]), float(r["wup_ba"])) for r in csv.DictReader(file)]


def symmetric(a, b, ab, ba):
    return 1.0 if a == b else max(ab, ba)


def test_golden_file_holds_what_it_should():
    pairs = golden_pairs()
    assert len({(a, b) for _, a, b, _, _ in pairs}) >= 5000
    for kind in ("multi_parent", "ancestor", "self", "asymmetric"):
        assert len({(a, b) for k, a, b, _, _ in pairs if k == kind}) >= 1000, kind
    assert all(ab != ba for k, _, _, ab, ba in pairs if k == "asymmetric")
    assert all(a == b for k, a, b, _, _ in pairs if k == "self")


def test_equals_nltk_on_the_golden_file():
    for kind, a, b, ab, ba in golden_pairs():
        assert wup_directed(a, b) == ab, (kind, a, b)
        assert wup_directed(b, a) == ba, (kind, b, a)
        assert wup(a, b) == symmetric(a, b, ab, ba), (kind, a, b)
        assert wup(b, a) == wup(a, b)


def test_self_is_clamped_to_one():
    below = [(a, ab) for kind, a, _, ab, _ in golden_pairs() if kind == "self" and ab < 1]
    assert below, "the golden file should hold nouns that NLTK puts below 1 with themselves"
    assert all(wup(a, a) == 1.0 and wup_matrix([a], [a])[0, 0] == 1.0 for a, _ in below)
    assert wup("person.n.01", "person.n.01") == 1.0
    assert wup_directed("person.n.01", "person.n.01") == pytest.approx(6 / 7, abs=0)


def test_known_values():
    assert wup("dog.n.01", "cat.n.01") == 0.8571428571428571
    assert wup("n02084071", "n02121620") == wup("dog.n.01", "cat.n.01")
    assert wup("n02084071", "dog.n.01") == 1.0


def test_matrix_equals_single_pairs_on_golden_nouns():
    by_kind = {kind: list(pairs)[:40] for kind, pairs in itertools.groupby(golden_pairs(), key=lambda p: p[0])}
    a = [pair[1] for pairs in by_kind.values() for pair in pairs]
    b = [pair[2] for pairs in by_kind.values() for pair in pairs]
    matrix = wup_matrix(a + a[:2], b)
    assert matrix.shape == (len(a) + 2, len(b)) and matrix.dtype == np.float64
    for (i, x), (j, y) in itertools.product(enumerate(a + a[:2]), enumerate(b)):
        assert matrix[i, j] == wup(x, y), (x, y)
    assert (matrix == wup_matrix(b, a + a[:2]).T).all()
    assert ((matrix > 0) & (matrix <= 1)).all()


def test_a_row_against_every_noun_takes_both_directions():
    names = wordnet.taxonomy().names
    for _, a, b, ab, ba in [p for p in golden_pairs() if p[0] == "asymmetric"][:3]:
        assert ab != ba
        for noun, other in ((a, b), (b, a)):
            row = wup_matrix([noun], names)[0]
            sample = [wordnet.taxonomy().find(other), *random.Random(1).sample(range(len(names)), 2000)]
            assert all(row[j] == wup(noun, names[j]) for j in sample)
            assert (row == 1).sum() == 1


def test_matrix_of_nothing():
    assert wup_matrix([], ["dog.n.01"]).shape == (0, 1)
    assert wup_matrix(["dog.n.01"], []).shape == (1, 0)


def test_unknown_synsets_are_all_listed_with_suggestions():
    with pytest.raises(UnknownLabelsError) as caught:
        wup_matrix(["dog.n.99", "n99999999"], ["cat.n.01"])
    message = str(caught.value)
    assert "'dog.n.99'" in message and "dog.n.01" in message and "n99999999" in message
    with pytest.raises(UnknownLabelsError, match=r"labrador\.n\.01"):
        wup("cat.n.01", "labradoor.n.01")
    with pytest.raises(UnknownLabelsError, match="None is no text"):
        wup(None, "dog.n.01")


def test_names_and_wnids_agree():
    t = wordnet.taxonomy()
    assert len(t.names) == len(set(t.names)) == 82115
    assert wordnet.wnid("dog.n.01") == wordnet.wnid("n02084071") == "n02084071"
    assert wordnet.synset_name("n02084071") == "dog.n.01"
    assert wordnet.senses("seal").index("seal.n.09") == 8
    assert wordnet.senses("no such noun") == []


def test_live_against_nltk():
    nltk = pytest.importorskip("nltk")
    if folder := os.environ.get("MVP_ZOO_NLTK_DATA"):
        nltk.data.path.insert(0, folder)
    from nltk.corpus import wordnet as wn

    try:
        wn.ensure_loaded()
    except LookupError:
        pytest.skip("NLTK's WordNet corpus is not installed; MVP_ZOO_NLTK_DATA may name its folder")
    if wn.get_version() != "3.0":
        pytest.skip("NLTK's corpus is not WordNet 3.0")
    t = wordnet.taxonomy()
    rng = random.Random()
    for _ in range(1000):
        a = rng.randrange(len(t.names))
        b = rng.choice([rng.randrange(len(t.names)), rng.choice(list(t.up(a)))])
        a, b = t.names[a], t.names[b]
        ab = wn.synset(a).wup_similarity(wn.synset(b))
        ba = wn.synset(b).wup_similarity(wn.synset(a))
        assert wup_directed(a, b) == ab and wup_directed(b, a) == ba, (a, b)
        assert wup(a, b) == symmetric(a, b, ab, ba), (a, b)
        assert wn.synset(a).offset() == int(wordnet.wnid(a)[1:])


def test_import_reads_no_table_and_no_nltk():
    code = (
        "import sys; from zoo import wordnet, labels, taskwup;"
        "assert wordnet.taxonomy.cache_info().currsize == 0;"
        "assert not {'nltk', 'torch', 'scipy', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, None])
def test_a_damaged_noun_table_is_refused(where, tmp_path, monkeypatch):
    content = bytearray(data_path("wordnet_nouns.npz").read_bytes())
    if where is None:
        content = content[: len(content) // 2]
    else:
        content[int(where * len(content))] ^= 4
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "wordnet_nouns.npz").write_bytes(content)
    monkeypatch.setattr("zoo.datafiles._PACKAGE", tmp_path / "zoo")
    with pytest.raises(CorruptionError, match="noun table"):
        wordnet.Taxonomy(), wordnet._lemmas.__wrapped__()
