"""FAISS spaces against a comparison with every vector in float64, through additions, removals and filters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import zoo.index as index
import zoo.spaces as spaces
from zoo.errors import DataError, NotFoundError, OptionError
from zoo.index import Space, cosine, unit


def naive_search(query, ids, vectors, k):
    def cos(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    return sorted(((cos(query, v), i) for i, v in zip(ids, vectors)), key=lambda x: (-round(x[0], 12), x[1]))[:k]


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_search_finds_the_nearest(n, dim, k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    query = rng.normal(size=dim).astype(np.float32)
    ids = [f"id{i:03d}" for i in rng.permutation(n)]
    found = Space("s", ids, vectors).search(query, k)
    expected = naive_search(query, ids, vectors, k)
    assert [score for _, score in found] == pytest.approx([score for score, _ in expected], abs=1e-9)
    if dim > 1:  # in one dimension all are ties up to rounding
        assert [id for id, _ in found] == [id for _, id in expected]


def test_ties_are_ordered_by_id_even_across_the_cut():
    vectors = np.tile(np.array([1.0, 2.0], np.float32), (50, 1)) * np.arange(1, 51, dtype=np.float32)[:, None]
    ids = [f"id{i:03d}" for i in reversed(range(50))]
    assert [id for id, _ in Space("s", ids, vectors).search([1, 2], 3)] == ["id000", "id001", "id002"]


def test_proposal_holds_vectors_that_float32_cannot_tell_apart():
    base = np.ones(512, np.float64)
    vectors = [base + 1e-6 * np.random.default_rng(i).normal(size=512) for i in range(30)]
    proposed = Space("s", [str(i) for i in range(30)], vectors).propose(base, 2)
    best = np.argsort(-cosine(base, np.stack([np.asarray(v, np.float32) for v in vectors])))[:2]
    assert set(best.tolist()) <= set(proposed.tolist())


def test_k_beyond_the_space_is_all_and_an_empty_space_is_empty():
    space = Space("s", ["a", "b"], np.eye(2))
    assert len(space.search([1, 0], 9)) == 2
    assert Space("s", [], []).dim == 0


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [0, 0], [1, 2, 3], 5.0])
def test_vectors_that_faiss_would_drop_are_refused(bad):
    with pytest.raises(DataError, match="bad-id"):
        Space("s", ["fine", "bad-id"], [[1, 2], bad])
    with pytest.raises(DataError, match="query"):
        Space("s", ["fine"], [[1, 2]]).search(bad, 1)


def test_ids_and_k_are_checked():
    with pytest.raises(DataError, match="one vector an id"):
        Space("s", ["a", "a"], np.eye(2))
    with pytest.raises(OptionError):
        Space("s", ["a"], np.ones((1, 2))).search([1, 0], 0)


def test_unit_survives_tiny_and_huge_values():
    rows = unit([[1e-300, 1e-300], [1e300, 1e300]])
    assert np.allclose(rows, 0.5**0.5)
    assert cosine([1, 1], rows) == pytest.approx([1, 1])


def test_a_score_does_not_depend_on_the_other_rows():
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(20, 33)), rng.normal(size=33)
    assert cosine(query, vectors).tolist() == [cosine(query, v[None])[0] for v in vectors]


@pytest.fixture
def small(monkeypatch):
    """Sizes that let a small space do what a large one does: propose few, leave flat, give places back."""
    monkeypatch.setattr(index, "MORE", 2)
    monkeypatch.setattr(spaces, "FLAT_UP_TO", 300)
    monkeypatch.setattr(spaces, "ROWS_AT_ONCE", 70)


def near_ties(kind, n, dim, rng):
    """Vectors whose cosines with the first one half precision cannot tell apart, or hardly."""
    centre = rng.normal(size=dim)
    noise = rng.normal(size=(n, dim))
    if kind == "close":
        return centre + noise * 10.0 ** rng.uniform(-7, -2, (n, 1))
    if kind == "tiny entries":  # below what half precision holds, but for one
        return np.where(np.arange(dim) == 0, 1.0, noise * 10.0 ** rng.uniform(-8, -4, (n, 1)))
    if kind == "scaled":
        return centre * 10.0 ** rng.uniform(-30, 30, (n, 1))
    return rng.choice([-1.0, 1.0], (n, dim)) * (1 + 2.0**-11 * rng.integers(-2, 3, (n, dim)))


@given(st.sampled_from(["close", "tiny entries", "scaled", "between halves"]), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_flat_has_every_near_tie_that_counts(kind, k, seed):
    rng = np.random.default_rng(seed)
    n, dim = 300, int(rng.integers(2, 70))
    vectors = near_ties(kind, n, dim, rng).astype(np.float32)
    query = vectors[0] if seed % 2 else rng.normal(size=dim).astype(np.float32)
    ids = [f"id{i:03d}" for i in rng.permutation(n)]
    scores = cosine(query, vectors)
    expected = [id for _, id in sorted(zip(-scores, ids))[:k]]
    assert [id for id, _ in Space("s", ids, vectors).search(query, k)] == expected


def test_few_proposals_are_widened_until_none_is_missed(small):
    rng = np.random.default_rng(0)
    vectors = near_ties("close", 200, 40, rng).astype(np.float32)
    ids = [f"id{i:03d}" for i in range(200)]
    for k in (1, 5, 60):
        found = Space("s", ids, vectors).search(vectors[7], k)
        assert found == [(id, -s) for s, id in sorted(zip(-cosine(vectors[7], vectors), ids))[:k]]
    spread = rng.normal(size=(200, 40))
    assert len(Space("s", ids, spread).propose(spread[0], 3)) < 20


class SpaceMachine(RuleBasedStateMachine):
    """A space and a dict of vectors go through the same."""

    recall: float | None = None

    @initialize(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 6))
    def start(self, seed, dim):
        self.rng, self.dim, self.known, self.count = np.random.default_rng(seed), dim, {}, 0
        self.space = Space("s", [], [], recall=self.recall)

    def some(self, share):
        return [id for id in self.known if self.rng.random() < share]

    def nearest(self, query, k, ids):
        scores = cosine(query, np.stack([self.known[id] for id in ids])) if ids else []
        return [(id, -s) for s, id in sorted(zip([-s for s in scores], ids))[:k]]

    @rule(n=st.integers(0, 40), half=st.booleans())
    def add(self, n, half):
        # Few different directions, so that there are ties.
        rows = self.rng.choice([-1.0, 1.0, 2.0], (n, self.dim)).astype(np.float16 if half else np.float32)
        ids = [f"{self.rng.integers(1000):03d}-{self.count + i}" for i in range(n)]
        self.count += n
        self.space.add(ids, rows if self.rng.random() < 0.5 else list(rows))
        self.known |= dict(zip(ids, rows.astype(np.float32)))

    @rule(share=st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    def remove(self, share):
        ids = self.some(share)
        self.space.remove(ids)
        self.gone = {id: self.known.pop(id) for id in ids}
        if ids:
            with pytest.raises(NotFoundError, match=ids[0]):
                self.space.remove([*self.known, ids[0]])
            if self.rng.random() < 0.5:
                self.space.add(list(self.gone), list(self.gone.values()))
                self.known |= self.gone

    @rule(k=st.integers(1, 50), share=st.sampled_from([0.0, 0.1, 0.9]), named=st.booleans())
    def filtered(self, k, share, named):
        if self.known:
            query, ids = self.rng.normal(size=self.dim), self.some(share)
            inside = set(ids)
            allowed = [*ids, "nobody"] if named else np.array([id in inside for id in self.space.ids])
            assert self.space.search(query, k, allowed) == self.nearest(query, k, ids)

    @rule(k=st.integers(1, 50))
    def search(self, k):
        if self.known:
            query = self.rng.choice([-1.0, 1.0, 3.0], self.dim)
            assert self.space.search(query, k) == self.nearest(query, k, list(self.known))
            proposed = self.space.propose(query, k)
            assert (np.diff(proposed) > 0).all() and min(k, len(self.known)) <= len(proposed) <= len(self.known)

    @invariant()
    def same_vectors(self):
        assert self.space.ids == tuple(self.known) and len(self.space) == len(self.known)
        if self.known:
            assert (self.space.vectors == np.stack(list(self.known.values()))).all()


@pytest.mark.usefixtures("small")
class TestFlatSpace(SpaceMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def clustered(n, dim=24, centres=40):
    rng = np.random.default_rng(1)
    middle = rng.normal(size=(centres, dim))
    return (middle[rng.integers(0, centres, n)] + 0.4 * rng.normal(size=(n, dim))).astype(np.float32)


def always(kind, monkeypatch):
    """Leave one kind to be tried, and let no clock say that it is slow."""
    trials = spaces._trials

    def only(*args):
        return ((i, spaces.replace(t, query_ms=0.0)) for i, t in trials(*args) if t.kind == kind)

    monkeypatch.setattr(spaces, "_trials", only)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_reach_their_recall_and_filter_exactly(kind, small, monkeypatch):
    always(kind, monkeypatch)
    vectors, rng = clustered(1500), np.random.default_rng(2)
    ids = [f"id{i:04d}" for i in range(1500)]
    space = Space("s", ids[:200], vectors[:200], recall=0.9)
    assert space.kind == "flat" and space.about()["recall@10"] == [1.0]
    space.add(ids[200:1200], vectors[200:1200])
    assert space.kind == kind
    lines = [row for row in space.about().rows() if row["in use"] == "yes"]
    assert len(lines) == 1 and lines[0]["kind"] == kind and lines[0]["recall@10"] >= 0.9 and lines[0]["effort"] > 0
    space.add(ids[1200:], vectors[1200:])
    gone = set(rng.choice(ids, 700, replace=False).tolist())
    for n, part in enumerate((sorted(gone)[:300], sorted(gone)[300:])):  # some places stay empty, then a rebuild
        space.remove(part)
        assert ("300 places empty" in str(space.about())) == (n == 0)
        left = [i for i, id in enumerate(ids) if id not in (set(sorted(gone)[:300]) if n == 0 else gone)]
        hits = 0
        for q in left[:50]:
            truth = sorted(zip(-cosine(vectors[q], vectors[left]), (ids[i] for i in left)))
            found = space.search(vectors[q], 10)
            assert len(found) == 10 and {id for id, _ in found} <= {ids[i] for i in left}
            hits += len({id for id, _ in found} & {id for _, id in truth[:10]})
            allowed = [i for i in left if rng.random() < 0.2]
            exact = sorted(zip(-cosine(vectors[q], vectors[allowed]), (ids[i] for i in allowed)))[:10]
            assert space.search(vectors[q], 10, [ids[i] for i in allowed]) == [(id, -s) for s, id in exact]
            inside = np.isin(space.ids, [ids[i] for i in allowed])
            assert [id for id, _ in space.search(vectors[q], 10, inside)] == [id for _, id in exact]
        assert hits / 500 >= 0.85
    assert space.kind == kind


def test_a_kind_that_does_not_reach_the_recall_or_is_no_quicker_is_not_used(small, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(400, 64))
    ids = [str(i) for i in range(400)]
    slow = spaces._trials

    def no_quicker(*args):
        return ((i, spaces.replace(t, query_ms=1e9)) for i, t in slow(*args))

    monkeypatch.setattr(spaces, "_trials", no_quicker)
    space = Space("s", ids, vectors, recall=0.5)
    table = space.about()
    assert space.kind == "flat" and table["in use"] == ["yes", *[""] * (len(table) - 1)]
    assert {"flat", "ivf", "hnsw"} == set(table["kind"])
    recalls = [row["recall@10"] for row in table.rows() if row["kind"] == "ivf"]
    assert recalls == sorted(recalls) and recalls[0] < 0.99, "hard vectors: few lists hold few of the neighbours"
    assert Space("s", ids, vectors).about()["kind"] == ["flat"]


def test_recall_counts_equally_near_vectors_as_found(small, monkeypatch):
    always("hnsw", monkeypatch)
    vectors = np.repeat(clustered(40), 20, axis=0)
    space = Space("s", [str(i) for i in range(800)], vectors, recall=0.9)
    assert max(space.about()["recall@10"][1:]) >= 0.9


def test_the_index_is_chosen_anew_when_the_space_has_doubled(small, monkeypatch):
    asked = []
    original = spaces.choose
    monkeypatch.setattr(spaces, "choose", lambda units, recall: asked.append(len(units)) or original(units, recall))
    always("ivf", monkeypatch)
    vectors = clustered(1000)
    space = Space("s", ["0"], vectors[:1], recall=0.5)
    for start in range(1, 1000, 37):
        space.add([str(i) for i in range(start, min(1000, start + 37))], vectors[start : start + 37])
    assert asked == [334, 704]


def test_bad_arguments_list_every_mistake_and_change_nothing():
    space = Space("s", ["a", "b"], np.eye(2))
    with pytest.raises(DataError) as caught:
        space.add(["b", "c", "d", "e"], [[1, 1], [np.nan, 1], [1, 1], [0, 0]])
    assert [p.split(":")[0] for p in caught.value.problems] == ["b", "c", "e"]
    with pytest.raises(NotFoundError) as missing:
        space.remove(["a", "x", "y"])
    assert missing.value.problems == ("x", "y")
    assert space.ids == ("a", "b")
    for call in (
        lambda: space.add("ab", np.eye(2)), lambda: space.remove("a"), lambda: space.search([1, 0], 1, "a"),
        lambda: space.search([1, 0], 1, np.ones(3, bool)), lambda: space.search([1, 0], 1, np.array([0, 1])),
        lambda: space.search([1, 0], True), lambda: Space("s", [], [], recall=1.0),
        lambda: Space("s", [], [], recall=0.0),
    ):  # fmt: skip
        with pytest.raises(OptionError):
            call()
    assert space.search([1, 0], 3, []) == [] and space.search([1, 0], 3, np.zeros(2, bool)) == []


def test_half_precision_vectors_stay_so_until_a_wider_one_comes():
    space = Space("s", ["a"], np.array([[0.1, 0.3]], np.float16))
    assert space.vectors.dtype == np.float16
    space.add(["b"], [[0.1, 0.3]])
    assert space.vectors.dtype == np.float32
    assert space.vectors.tolist() == np.array([[np.float16(0.1), np.float16(0.3)], [0.1, 0.3]], np.float32).tolist()
