"""Task similarity by WordNet against naive formulas over the similarities of the classes."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest

from zoo import taskwup, wordnet
from zoo.errors import OptionError, UnknownLabelsError
from zoo.taskwup import TaskTable, task_wup, task_wup_many
from zoo.wordnet import wup, wup_matrix

ANIMALS = ["dolphin.n.02", "whale.n.02", "seal.n.09", "otter.n.02", "beaver.n.07"]
VEHICLES = ["bus.n.01", "train.n.01", "tank.n.01", "rocket.n.01", "tractor.n.01"]


def random_tasks(n, seed=0, sizes=(5,), pool=300):
    rng = random.Random(seed)
    names = rng.sample(wordnet.taxonomy().names, pool)
    return [rng.sample(names, rng.choice(sizes)) for _ in range(n)]


def naive_task_wup(a, b):
    rows = [max(wup(x, y) for y in b) for x in a]
    columns = [max(wup(x, y) for x in a) for y in b]
    return (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


def test_task_wup_is_the_formula():
    for a, b in zip(random_tasks(40, 1, (1, 2, 5, 7)), random_tasks(40, 2, (1, 3, 5))):
        assert task_wup(a, b) == pytest.approx(naive_task_wup(a, b), abs=3e-13)
        matrix = wup_matrix(a, b)
        assert task_wup(a, b, how="mean") == pytest.approx(matrix.mean(), abs=3e-13)


def test_hungarian_is_the_best_matching():
    for a, b in zip(random_tasks(20, 3, (1, 3, 4)), random_tasks(20, 4, (3, 4))):
        matrix = wup_matrix(a, b) if len(a) <= len(b) else wup_matrix(b, a)
        n, m = matrix.shape
        best = max(sum(matrix[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(m), n))
        assert task_wup(a, b, how="hungarian") == pytest.approx(best / m, abs=3e-13)


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


def naive_whole(query, task):
    """The best match with sums of whole numbers of 2^-42, one class at a time."""
    units = [[round(wup(x, y) * 2**42) for y in task] for x in query]
    rows, columns = sum(map(max, units)), sum(map(max, zip(*units)))
    return (float(columns) / len(task) + float(rows) / len(query)) / 2 * 2.0**-42


def test_the_compiled_loop_gives_the_same_bits(monkeypatch):
    tasks = [*random_tasks(80, 10, (1, 2, 5, 9)), [], random_tasks(1, 11, (60,))[0]]
    by_numpy = TaskTable(tasks)
    monkeypatch.setattr(taskwup, "_BY_NUMPY", -1)
    compiled = TaskTable(tasks)
    for query in [*tasks[:8], tasks[-1]]:
        monkeypatch.setattr(taskwup, "_BY_NUMPY", 10**9)
        expected = by_numpy.scores(query)
        monkeypatch.setattr(taskwup, "_BY_NUMPY", -1)
        np.testing.assert_array_equal(compiled.scores(query), expected)
        small = [i for i, task in enumerate(tasks) if 0 < len(task) < 10 and len(query) < 10]
        assert expected[small].tolist() == [naive_whole(query, tasks[i]) for i in small]


@pytest.mark.parametrize("k", [1, 4, 200])
def test_top_k_of_all_pairs_is_the_sorted_row(k, monkeypatch):
    pool = random_tasks(1, 12, (12,))[0]
    rng = random.Random(13)
    # Few nouns make many ties; more tasks than one tile holds.
    tasks = [rng.sample(pool, rng.choice((1, 2, 3))) for _ in range(150)]
    tasks[7] = []
    table = TaskTable(tasks)
    found, scores = table.top_k(k)
    for i, task in enumerate(tasks):
        row = table.scores(task) if task else np.full(150, np.nan)
        order = sorted((-s, j) for j, s in enumerate(row) if j != i and not np.isnan(s))[:k]
        assert found[i].tolist() == [j for _, j in order] + [-1] * (k - len(order)), i
        assert scores[i].tolist() == [-s for s, _ in order] + [-1.0] * (k - len(order))
    with pytest.raises(OptionError):
        table.top_k(0)


def test_tasks_of_very_many_classes_do_not_overflow():
    names = wordnet.taxonomy().names[1000:4000]
    many, few = names, names[::700]
    expected = naive_task_wup(few, few)
    assert expected <= 1 and task_wup(many, many) == 1.0
    rows = np.mean(wup_matrix(few, many).max(1))
    columns = np.mean(wup_matrix(few, many).max(0))
    assert task_wup(few, many) == pytest.approx((rows + columns) / 2, abs=1e-12)


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


def test_the_public_names():
    import zoo

    assert zoo.wup is wup and zoo.task_wup is task_wup
    tasks = [zoo.Task(labels=["dolphin", "seal"], dataset="cifar100"), zoo.Task(labels=["bus", "train"])]
    assert tasks[0].synsets == ("n02068974", "n02076196")
    assert zoo.task_wup(tasks[0], tasks[0]) == 1.0 > zoo.task_wup(*tasks)
