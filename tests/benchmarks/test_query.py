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
