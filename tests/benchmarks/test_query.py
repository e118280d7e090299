"""Similarity of one against N; `pytest tests/benchmarks --benchmark-enable` measures."""

import numpy as np
import pytest

import zoo
from tests.benchmarks.timing import against
from zoo import labels, wordnet
from zoo.channels import iou_rows, pack
from zoo.taskwup import TaskTable


def naive_task_wup(a, b):
    table = [[wordnet.wup(x, y) for y in b] for x in a]
    rows = [max(row) for row in table]
    columns = [max(column) for column in zip(*table)]
    return (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


@pytest.mark.parametrize("n", [30, 1000])
def test_wup_of_one_task_against_n(n, benchmark):
    nouns = [r.wnid for r in labels.table("cifar100").values() if r.wnid]
    rng = np.random.default_rng(0)
    tasks = [rng.choice(nouns, 5, replace=False).tolist() for _ in range(n)]
    query = rng.choice(nouns, 5, replace=False).tolist()
    table = TaskTable(tasks)
    assert table.scores(query, "best_match")[:30] == pytest.approx([naive_task_wup(query, t) for t in tasks[:30]])
    against(
        benchmark, lambda: table.scores(query, "best_match"), lambda: [naive_task_wup(query, t) for t in tasks],
        "python loop over zoo.wup",
    )  # fmt: skip


def random_table(n):
    nouns = [r.wnid for r in labels.table("cifar100").values() if r.wnid]
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.permutation(len(nouns))[:5] for _ in range(n)]).astype(np.int32)
    return nouns, TaskTable.of_codes(nouns, flat, np.full(n, 5)), flat.reshape(n, 5)


def test_wup_of_one_task_against_many_compiled(benchmark):
    n = 100_000
    nouns, table, codes = random_table(n)
    query = nouns[:5]
    expected = table.scores(query)
    for _ in range(3):  # the first questions are answered by numpy
        table.scores(query)
    assert np.array_equal(table.scores(query), expected)
    few = [[nouns[c] for c in row] for row in codes[:200]]

    def naive():
        return [naive_task_wup(query, task) for task in few]

    assert expected[:200] == pytest.approx(naive(), abs=1e-12)
    against(benchmark, lambda: table.scores(query), naive, "python loop over zoo.wup, 200 of the tasks")
    if benchmark.stats is not None:
        benchmark.extra_info["ns a task"] = round(benchmark.stats.stats.median / n * 1e9, 1)


def test_wup_of_all_pairs(benchmark):
    n = 4000 if benchmark.enabled else 100
    nouns, table, codes = random_table(n)
    found, scores = benchmark(lambda: table.top_k(5))
    row = table.scores([nouns[c] for c in codes[7]])
    row[7] = -1
    assert scores[7].tolist() == sorted(row, reverse=True)[:5] and row[found[7]].tolist() == scores[7].tolist()
    if benchmark.stats is not None:
        benchmark.extra_info["ns a pair"] = round(benchmark.stats.stats.median / n**2 * 1e9, 1)


@pytest.mark.parametrize("n", [100, 10_000])
def test_iou_of_one_against_n(n, benchmark):
    rng = np.random.default_rng(0)
    kept = [np.sort(rng.choice(512, 51, replace=False)) for _ in range(n)]
    words, sets = pack([{"a0": k} for k in kept], {"a0": 512}).bits["a0"], [set(k.tolist()) for k in kept]

    def naive():
        return [len(sets[0] & s) / len(sets[0] | s) for s in sets]

    assert iou_rows(words[:1], words)[0].tolist() == naive()
    assert zoo.iou(kept[0], kept[1]) == naive()[1]
    against(benchmark, lambda: iou_rows(words[:1], words), naive, "python sets")
