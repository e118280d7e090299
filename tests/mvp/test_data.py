from collections import Counter
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp.data import Data, draw_tasks
from zoo.errors import DataError, OptionError


def make(train, test=(0, 1, 2), labels=("cat", "dog", "bird"), **options):
    """Images whose pixels hold their position in the split, from 0 in train and from 100 in test."""

    def images(n, start):
        return torch.arange(start, start + n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()

    train_images, test_images = images(len(train), 0), images(len(test), 100)
    return Data("pets", labels, train_images, torch.tensor(train), test_images, torch.tensor(test), **options)


def positions(images):
    return images[:, 0, 0, 0].tolist()


def test_data_has_its_task():
    data = make([0, 1, 2], synsets=("n02121620", "n02084071", None), seed=7)
    assert data.task.labels == ("cat", "dog", "bird") and data.task.dataset == "pets"
    assert data.task.synsets == ("n02121620", "n02084071", None) and data.task.seed == 7
    assert make([0, 1, 2]).task.synsets[1] == "n02084071"


def test_wrong_tensors_are_all_listed():
    good = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError) as caught:
        Data("x", ("a", "b", "a"), good.float(), torch.tensor([0, 3]), good[:0], torch.tensor([0]))
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for part in ("one class is called a", "torch.float32", "values 0..3, expected 0..2", "no images", "int64"):
        assert part in text
    with pytest.raises(DataError, match=r"got \(2, 4, 4, 3\)"):
        Data("x", ("a", "b"), good.permute(0, 2, 3, 1), torch.tensor([0, 1]), good, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="got ndarray, expected a tensor"):
        Data("x", ("a", "b"), good.numpy(), torch.tensor([0, 1]), good, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="int64"):
        Data("x", ("a", "b"), good, torch.tensor([0, 1], dtype=torch.int32), good, torch.tensor([0, 1]))


@given(train=st.lists(st.integers(0, 2), min_size=1, max_size=30), data=st.data())
@settings(max_examples=50)
def test_subset_relabels_in_the_order_given(train, data):
    classes = data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]
    if not set(classes) & set(train):
        return
    names = ("cat", "dog", "bird")
    whole = make(train, synsets=("n02121620", "n02084071", None))
    part = whole.subset([names[c] if data.draw(st.booleans()) else c for c in classes], seed=5)
    assert part.labels == tuple(names[c] for c in classes) and part.seed == 5
    assert part.synsets == tuple(whole.synsets[c] for c in classes)
    expected = [(i, classes.index(c)) for i, c in enumerate(train) if c in classes]
    assert list(zip(positions(part.train_images), part.train_labels.tolist())) == expected
    assert [positions(part.test_images), part.test_labels.tolist()] == [
        [100 + c for c in sorted(classes)],
        [classes.index(c) for c in sorted(classes)],
    ]


def test_subset_takes_numpy_indices():
    assert make([0, 1, 2]).subset(np.array([2, 0])).labels == ("bird", "cat")


@pytest.mark.parametrize("classes", [["fish"], ["cat", "cat"], ["cat", 0], [], [3], [-1], ["cat", "fish", 9]])
def test_subset_refuses_unknown_and_repeated_classes(classes):
    with pytest.raises(DataError, match="cannot take these classes") as caught:
        make([0, 1, 2]).subset(classes)
    assert all(str(c) in str(caught.value) for c in classes if c in ("fish", 9))


@given(train=st.lists(st.integers(0, 2), min_size=1, max_size=40), n=st.integers(1, 50), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_sample_is_balanced(train, n, seed):
    whole = make(train)
    part = whole.sample(n, seed=seed)
    taken = positions(part.train_images)
    assert len(taken) == len(set(taken)) == min(n, len(train))
    assert part.train_labels.tolist() == [train[i] for i in taken]
    there, got = Counter(train), Counter(part.train_labels.tolist())
    # A class has fewer than the fullest one, by more than 1, only when all of its images are taken.
    assert all(got[c] >= max(got.values()) - 1 or got[c] == there[c] for c in there)
    assert torch.equal(part.test_images, whole.test_images) and part.labels == whole.labels
    assert positions(whole.sample(n, seed=seed).train_images) == taken


def test_sample_depends_on_the_seed_and_grows():
    whole = make([0, 1, 2] * 20)
    assert positions(whole.sample(9, seed=0).train_images) != positions(whole.sample(9, seed=1).train_images)
    small, large = (set(positions(whole.sample(n, seed=0).train_images)) for n in (9, 12))
    assert small < large


@given(n_labels=st.integers(2, 12), n_classes=st.integers(2, 6), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_drawn_tasks_are_distinct_and_seeded(n_labels, n_classes, share, seed):
    n_classes = min(n_classes, n_labels)
    labels = [f"class {i}" for i in range(n_labels)]
    n = max(1, round(share * comb(n_labels, n_classes)))
    tasks = draw_tasks(labels, n, n_classes=n_classes, seed=seed)
    assert len(tasks) == n == len({frozenset(t) for t in tasks})
    assert all(len(set(t)) == n_classes and set(t) <= set(labels) for t in tasks)
    assert draw_tasks(labels, n, n_classes=n_classes, seed=seed) == tasks
    assert draw_tasks(labels, max(1, n // 2), n_classes=n_classes, seed=seed) == tasks[: max(1, n // 2)]


def test_tasks_are_drawn_uniformly():
    # 2,000 draws of 2 out of 6 classes: a class is in a third of them, a position is any class's equally often.
    labels = "abcdef"
    tasks = [draw_tasks(labels, 1, n_classes=2, seed=s)[0] for s in range(2000)]
    for label in labels:
        assert abs(sum(label in t for t in tasks) / 2000 - 1 / 3) < 0.05
        assert abs(sum(t[0] == label for t in tasks) / 2000 - 1 / 6) < 0.04


@pytest.mark.parametrize(("labels", "n", "k"), [("abc", 1, 1), ("abc", 1, 4), ("abc", 4, 2), ("ab", 2, 2)])
def test_impossible_draws(labels, n, k):
    with pytest.raises(OptionError, match=f"cannot draw {n} different tasks of {k} classes from {len(labels)}"):
        draw_tasks(labels, n, n_classes=k)
