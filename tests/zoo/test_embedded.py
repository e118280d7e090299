"""Measures of embeddings against naive ones, and what they say when an embedding is missing."""

import math

import numpy as np
import pytest
from fakes import base_row, make_snapshot, score_row, similar_zoo, sub_row

import zoo.errors as errors
from zoo.measures import Query, find_measure
from zoo.query import nearest
from zoo.rows import Rows

DOGS = ["dog.n.01", "wolf.n.01"]
CATS = ["cat.n.01", "lion.n.01"]
BUSES = ["bus.n.01", "truck.n.01"]


@pytest.mark.parametrize("k", [1, 5, 30])
def test_what_prototype_proposes_holds_the_k_best(k):
    rows = Rows.of(similar_zoo(30))
    measure = find_measure("prototype")
    query = Query(rows, rows.target(4), np.arange(30)[::-1].copy())
    best = np.argsort(-measure.score(query))[:k]
    assert set(best.tolist()) <= set(measure.propose(query, k).tolist())


def naive_task2vec(a, b):
    """Cosine of F_a / (F_a + F_b) and F_b / (F_a + F_b), over the entries that are not 0 in both."""
    pairs = [(x / (x + y), y / (x + y)) for x, y in zip(a, b) if x + y > 0]
    lengths = math.sqrt(sum(x * x for x, _ in pairs)) * math.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / lengths if lengths else 0.0


def test_task2vec_is_the_cosine_of_the_shares():
    rng = np.random.default_rng(0)
    vectors = (rng.exponential(size=(8, 5)) * rng.integers(0, 2, (8, 5)) * 1e-6).astype("f4")
    vectors[0], vectors[1] = 0, 3
    subs = [sub_row(f"s{i}", f"t{i}", [["cat.n.01"], ["bus.n.01"]][i % 2] + [f"label {i}"],
                    embeddings={"task2vec": v.tolist()}) for i, v in enumerate(vectors)]  # fmt: skip
    asked = [0.0, 1e-6, 0.0, 2e-6, 5e-7]
    found = nearest(make_snapshot(subs), DOGS, by="task2vec", k=None, embedding=asked)
    for id, score in zip(found.id, found.score):
        assert score == pytest.approx(naive_task2vec(np.float32(asked), vectors[int(id[1:])].astype(float)), abs=1e-6)
    assert dict(zip(found.id, found.score))["s0"] == 0
    same = nearest(make_snapshot(subs), DOGS, by="task2vec", k=1, embedding=(vectors[5] * 10).tolist())
    assert (same.id, same.score) == (("s5",), pytest.approx((1.0,)))
    with pytest.raises(errors.DataError, match="not negative"):
        nearest(make_snapshot(subs), DOGS, by="task2vec", k=1, embedding=[-1, 1, 1, 1, 1])
    with pytest.raises(errors.MissingScoresError, match=r'no embedding.*by="task2vec"'):
        nearest(make_snapshot(subs), DOGS, by="task2vec", k=1)


def naive_cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("k", [1, 4, None])
def test_prototype_is_the_cosine(k):
    zoo = similar_zoo(30)
    embedding = {r["id"]: dict(r["embeddings"])["prototype"] for r in zoo.subnetworks.to_pylist()}
    others = set(nearest(zoo, "s0002", k=None).id)
    expected = sorted(others, key=lambda i: (-naive_cosine(embedding["s0002"], embedding[i]), i))
    found = nearest(zoo, "s0002", by="prototype", k=k)
    assert list(found.id) == expected[:k]
    assert found.score == pytest.approx([naive_cosine(embedding["s0002"], embedding[i]) for i in found.id], abs=1e-9)


def test_encodings_of_stamp_are_compared_like_prototypes_and_apart_from_them():
    subs = [
        sub_row("a", "ta", CATS, embeddings={"stamp": [1.0, 0.0, 0.0], "prototype": [0.0, 1.0]}),
        sub_row("b", "tb", BUSES, embeddings={"prototype": [1.0, 0.0]}),
    ]
    scores = [score_row("base-toy", "tb", measure="stamp", vector=[0.0, 2.0, 0.0])]
    zoo = make_snapshot(subs, scores)
    assert nearest(zoo, DOGS, by="stamp", k=2, embedding=[0.1, 1.0, 0.0]).id == ("b", "a")
    assert nearest(zoo, DOGS, by="prototype", k=2, embedding=[0.1, 1.0]).id == ("a", "b")
    with pytest.raises(errors.MissingScoresError, match=r'no embedding.*by="stamp", generator=path'):
        nearest(zoo, DOGS, by="stamp", k=1)
    with pytest.raises(errors.MissingScoresError, match="1 of 2 sub-networks have no embedding"):
        nearest(make_snapshot(subs), DOGS, by="stamp", k=1, embedding=[1.0, 1.0, 0.0])


def test_where_prototypes_come_from():
    tasks = [{"id": "new", "dataset": "d", "labels": DOGS, "synsets": DOGS}]
    subs = [sub_row("a", "ta", CATS, embeddings={"prototype": [1.0, 0.0]}), sub_row("b", "tb", BUSES)]
    scores = [score_row("base-toy", "tb", measure="prototype", vector=[0.0, 2.0])]
    zoo = make_snapshot(subs, scores, tasks=tasks)
    assert nearest(zoo, DOGS, by="prototype", k=1, embedding=[0.1, 1.0]).id == ("b",)
    with pytest.raises(errors.MissingScoresError, match="embedding="):
        nearest(zoo, DOGS, by="prototype", k=1)
    with pytest.raises(errors.MissingScoresError, match="1 of 2"):
        nearest(make_snapshot(subs, tasks=tasks), DOGS, by="prototype", k=1, embedding=[1, 1])
    scored = make_snapshot(
        subs, [*scores, score_row("base-toy", "new", measure="prototype", vector=[3.0, 1.0])], tasks=tasks
    )
    assert nearest(scored, "new", by="prototype", k=2).score == pytest.approx((3 / 10**0.5, 1 / 10**0.5))
    for bad in ([1, 2, 3], [0, 0], [np.nan, 1]):
        with pytest.raises(errors.DataError):
            nearest(zoo, DOGS, by="prototype", k=1, embedding=bad)
    two = make_snapshot([*subs[:1], sub_row("c", "tc", BUSES, base_id="base-2", embeddings={"prototype": [1.0]})],
                        bases=[base_row(), base_row("2")])  # fmt: skip
    with pytest.raises(errors.BaseMismatchError, match="base="):
        nearest(two, DOGS, by="prototype", k=1, embedding=[1, 1])
