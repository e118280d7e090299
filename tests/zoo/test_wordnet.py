"""zoo.wordnet and zoo.taskwup against NLTK (a file of its values, and live where its corpus is) and naive formulas."""

import csv
import gzip
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zoo import taskwup, wordnet
from zoo.datafiles import check_sum, data_path, sha256
from zoo.errors import CorruptionError, NotFoundError, OptionError, UnknownLabelsError
from zoo.taskwup import TaskTable, task_wup, task_wup_many
from zoo.wordnet import wup, wup_directed, wup_matrix

GOLDEN = Path(__file__).parent / "golden" / "wup_pairs.csv.gz"
ANIMALS = ["dolphin.n.02", "whale.n.02", "seal.n.09", "otter.n.02", "beaver.n.07"]
VEHICLES = ["bus.n.01", "train.n.01", "tank.n.01", "rocket.n.01", "tractor.n.01"]


def golden_pairs():
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        return [(r["kind"], r["a"], r["b"], float(r["wup_ab"]), float(r["wup_ba"])) for r in csv.DictReader(file)]


def symmetric(a, b, ab, ba):
    return 1.0 if a == b else max(ab, ba)


def naive_task_wup(a, b):
    rows = [max(wup(x, y) for y in b) for x in a]
    columns = [max(wup(x, y) for x in a) for y in b]
    return (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


# --- class similarity ---------------------------------------------------------------------------------------------


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


# --- task similarity ----------------------------------------------------------------------------------------------


def random_tasks(n, seed=0, sizes=(5,), pool=300):
    rng = random.Random(seed)
    names = rng.sample(wordnet.taxonomy().names, pool)
    return [rng.sample(names, rng.choice(sizes)) for _ in range(n)]


def test_task_wup_is_the_formula():
    for a, b in zip(random_tasks(40, 1, (1, 2, 5, 7)), random_tasks(40, 2, (1, 3, 5))):
        assert task_wup(a, b) == pytest.approx(naive_task_wup(a, b), abs=1e-15)
        matrix = wup_matrix(a, b)
        assert task_wup(a, b, how="mean") == pytest.approx(matrix.mean(), abs=1e-15)


def test_hungarian_is_the_best_matching():
    for a, b in zip(random_tasks(20, 3, (1, 3, 4)), random_tasks(20, 4, (3, 4))):
        matrix = wup_matrix(a, b) if len(a) <= len(b) else wup_matrix(b, a)
        n, m = matrix.shape
        best = max(sum(matrix[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(m), n))
        assert task_wup(a, b, how="hungarian") == pytest.approx(best / m, abs=1e-15)


def test_task_wup_is_symmetric_and_blind_to_order():
    rng = random.Random(5)
    for a, b in zip(random_tasks(40, 6, (2, 5, 6)), random_tasks(40, 7, (3, 5))):
        shuffled = rng.sample(a, len(a)), rng.sample(b, len(b))
        for how in ("best_match", "mean"):
            assert task_wup(a, b, how) == task_wup(b, a, how) == task_wup(*shuffled, how)


def test_a_task_is_nearest_to_itself():
    assert task_wup(ANIMALS, ANIMALS[::-1]) == 1.0
    assert task_wup(ANIMALS, ANIMALS, "hungarian") == 1.0
    assert task_wup(ANIMALS, VEHICLES) < task_wup(ANIMALS, ["dog.n.01", *ANIMALS[1:]]) < 1


def test_many_is_bit_equal_to_one_by_one():
    tasks = random_tasks(120, 8, (1, 2, 5, 9))
    table = TaskTable(tasks)
    for how in taskwup.HOW:
        for query in tasks[:6]:
            one_by_one = [task_wup(query, task, how) for task in tasks]
            assert task_wup_many(query, tasks, how).tolist() == one_by_one
            assert table.scores(query, how).tolist() == one_by_one
            assert table.scores(query, how)[::-1].tolist() == task_wup_many(query, tasks[::-1], how).tolist()


def test_kept_rows_are_bounded_and_change_nothing(monkeypatch):
    tasks = random_tasks(60, 9)
    expected = [task_wup_many(task, tasks).tolist() for task in tasks]
    monkeypatch.setattr(taskwup, "_KEPT_NUMBERS", 2000)
    table = TaskTable(tasks)
    assert [table.scores(task).tolist() for task in tasks] == expected
    assert sum(len(row) for row in table._rows.values()) <= 2000


def test_unmapped_labels_of_stored_tasks_are_counted():
    tasks = [ANIMALS, [*ANIMALS[:3], None, None], [None, None], VEHICLES]
    table = TaskTable(tasks)
    assert table.unmapped.tolist() == [0, 2, 2, 0]
    scores = table.scores(ANIMALS)
    assert np.isnan(scores).tolist() == [False, False, True, False]
    assert scores[1] == task_wup(ANIMALS, ANIMALS[:3])
    assert np.isnan(task_wup_many(ANIMALS, [[None]])).all()
    assert task_wup_many(ANIMALS, []).shape == (0,)


def test_unmapped_labels_of_a_query_raise():
    task = SimpleNamespace(labels=["dolphin", "flibbertigibbt"], synsets=["dolphin.n.02", None])
    with pytest.raises(UnknownLabelsError, match=r"'flibbertigibbt'.*flibbertigibbet"):
        task_wup_many(task, [ANIMALS])
    with pytest.raises(UnknownLabelsError, match="position 1"):
        task_wup(["dog.n.01", None], ANIMALS)
    with pytest.raises(UnknownLabelsError):
        task_wup(ANIMALS, ["dog.n.01", None])


def test_task_objects_count_as_their_synsets():
    a = SimpleNamespace(labels=["x", "y"], synsets=["n02084071", "cat.n.01"])
    assert task_wup(a, SimpleNamespace(synsets=VEHICLES)) == task_wup(["dog.n.01", "cat.n.01"], VEHICLES)


def test_wrong_arguments():
    with pytest.raises(OptionError, match="best_match, mean, hungarian"):
        task_wup(ANIMALS, VEHICLES, how="median")
    with pytest.raises(OptionError):
        task_wup([], VEHICLES)
    with pytest.raises(OptionError):
        task_wup("dog.n.01", VEHICLES)
    with pytest.raises(UnknownLabelsError):
        task_wup_many(ANIMALS, [["no such.n.01"]])


# --- shipped files ------------------------------------------------------------------------------------------------


def test_data_path_finds_files_and_says_what_is_missing(tmp_path, monkeypatch):
    assert data_path("wordnet_nouns.npz").stat().st_size < 5_000_000
    with pytest.raises(NotFoundError, match=r"nothing\.npz"):
        data_path("nothing.npz")
    for outside in ("../pyproject.toml", str(tmp_path)):
        with pytest.raises(OptionError):
            data_path(outside)
    monkeypatch.setattr("zoo.datafiles._PACKAGE", tmp_path / "zoo")
    with pytest.raises(NotFoundError, match="data folder is missing"):
        data_path("wordnet_nouns.npz")


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


def test_check_sum(tmp_path, monkeypatch):
    (tmp_path / "data" / "labels").mkdir(parents=True)
    file = tmp_path / "data" / "labels" / "a.json"
    file.write_text("{}")
    sums = tmp_path / "data" / "SHA256SUMS"
    sums.write_text(f"{sha256(file)}  labels/a.json\n")
    monkeypatch.setattr("zoo.datafiles._PACKAGE", tmp_path / "zoo")
    check_sum("labels/a.json")
    file.write_text("{ }")
    with pytest.raises(CorruptionError, match=r"labels/a\.json is damaged"):
        check_sum("labels/a.json")
    with pytest.raises(NotFoundError, match="no line"):
        check_sum("SHA256SUMS")


def test_the_public_names():
    import zoo

    assert zoo.wup is wup and zoo.task_wup is task_wup
    tasks = [zoo.Task(labels=["dolphin", "seal"], dataset="cifar100"), zoo.Task(labels=["bus", "train"])]
    assert tasks[0].synsets == ("n02068974", "n02076196")
    assert zoo.task_wup(tasks[0], tasks[0]) == 1.0 > zoo.task_wup(*tasks)
