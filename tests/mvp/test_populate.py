import dataclasses
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

import mvp
import zoo
from mvp.finetune import finetune
from mvp.populate import draw_related, populate
from mvp.producers.random import RandomChannels
from mvp.score import embed
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo import wordnet
from zoo.errors import DataError, OptionError

TASKS = [("dog", "cat", "horse"), ("lion", "tiger", "wolf"), ("fox", "bear", "dog"), ("goat", "sheep", "lion")]
ANIMALS = (
    "dog", "cat", "horse", "sheep", "goat", "lion", "tiger", "wolf", "fox", "bear", "rabbit", "mouse", "whale",
    "dolphin", "shark", "trout", "oak", "rose", "tulip", "bus", "truck", "bicycle", "chair", "sofa", "lamp",
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture
def z(tmp_path):
    return zoo.open(tmp_path / "z")


@pytest.fixture
def counting():
    """A producer whose log and death are no options of it."""
    log, dies = [], []

    @dataclasses.dataclass(frozen=True)
    class Producer(RandomChannels):
        strength: float = 1.0
        variant: str | None = None

        def prune(self, base, data, **options):
            log.append(data.labels)
            if len(log) in dies:
                raise Killed
            sub = RandomChannels.prune(self, base, data, **options)
            assert dict(sub.options) == dataclasses.asdict(self)
            return sub

    Producer.log, Producer.dies = log, dies
    return Producer


def test_every_task_gets_its_sub_network_embedding_and_scores(z):
    ids = populate(z, tiny.base(), tiny.data(), TASKS, producer="ifp", keep=0.5, seed=3, steps=4, prune_every=1)
    assert [z.get(i).task.labels for i in ids] == TASKS and sorted(z.ids()) == sorted(ids)
    for i, labels in zip(ids, TASKS):
        sub, data = z.get(i), tiny.data().subset(labels, seed=3)
        assert (sub.producer, sub.keep, sub.seed, sub.task) == ("ifp", 0.5, 3, data.task)
        np.testing.assert_allclose(sub.embeddings["prototype"], embed(tiny.base(), data), atol=1e-5)
        alone = mvp.prune(tiny.base(), data, producer="ifp", keep=0.5, seed=3, steps=4, prune_every=1)
        assert alone.id == i
    assert z.sql("select count(*) from scores where measure = 'leep'").fetchall() == [(len(TASKS) ** 2,)]
    assert len(z.iou_by_depth(by="leep", groups=2).to_pandas())


def test_a_killed_run_goes_on_where_it_stopped(z, counting):
    counting.dies.append(3)
    with pytest.raises(Killed):
        populate(z, tiny.base(), tiny.data(), TASKS, producer=counting, keep=0.5)
    assert counting.log == TASKS[:3] and len(z) == 2
    first = z.ids()
    counting.log.clear(), counting.dies.clear()
    ids = populate(z, tiny.base(), tiny.data(), TASKS, producer=counting, keep=0.5)
    assert counting.log == TASKS[2:] and ids[:2] == first and len(z) == 4
    version = z.version
    assert populate(z, tiny.base(), tiny.data(), TASKS, producer=counting, keep=0.5) == ids
    assert counting.log == TASKS[2:] and z.version == version


@pytest.mark.parametrize(
    "changed", [{"keep": 0.25}, {"seed": 1}, {"strength": 2.0}, {"variant": "b"}, {"base": "dropout"}], ids=str
)
def test_other_arguments_are_another_run(changed, z, counting):
    populate(z, tiny.base(), tiny.data(), TASKS[:2], producer=counting, keep=0.5, leep=False)
    base = tiny.base(changed.pop("base", "cnn"))
    populate(z, base, tiny.data(), TASKS[:2], producer=counting, leep=False, **{"keep": 0.5, **changed})
    assert counting.log == TASKS[:2] * 2 and len(z) == 4


def test_an_option_left_at_none_is_not_any_value(z, counting):
    one = populate(z, tiny.base(), tiny.data(), TASKS[:1], producer=counting, keep=0.5, leep=False, variant="b")
    other = populate(z, tiny.base(), tiny.data(), TASKS[:1], producer=counting, keep=0.5, leep=False)
    assert counting.log == TASKS[:1] * 2 and one != other
    ifp = {"producer": "ifp", "keep": 0.5, "leep": False, "batch_size": 16}
    wide = populate(z, tiny.base(), tiny.data(), TASKS[:1], steps=9, prune_every=2, **ifp)
    assert populate(z, tiny.base(), tiny.data(), TASKS[:1], steps=9, **ifp) != wide


def test_a_fine_tuned_copy_does_not_take_the_place_of_what_was_pruned(z, counting):
    ids = populate(z, tiny.base(), tiny.data(), TASKS[:1], producer=counting, keep=0.5, leep=False)
    data = tiny.data().subset(TASKS[0], seed=0)
    tuned = z.add(finetune(z.get(ids[0]), data, steps=1, batch_size=8))
    assert populate(z, tiny.base(), tiny.data(), TASKS[:1], producer=counting, keep=0.5, leep=False) == ids
    z.remove(ids[0])
    assert populate(z, tiny.base(), tiny.data(), TASKS[:1], producer=counting, keep=0.5, leep=False) == ids != [tuned]
    assert len(counting.log) == 2


def test_leep_can_be_left_to_a_last_run(z):
    parts = [TASKS[0::2], TASKS[1::2]]
    for part in parts:
        populate(z, tiny.base(), tiny.data(), part, producer="random", keep=0.5, leep=False)
    assert z.sql("select count(*) from scores").fetchall() == [(0,)]
    populate(z, tiny.base(), tiny.data(), TASKS, producer="random", keep=0.5)
    assert len(z) == 4 and z.sql("select count(*) from scores").fetchall() == [(16,)]


def test_wrong_use(z):
    with pytest.raises(OptionError, match="keep"):
        populate(z, tiny.base(), tiny.data(), TASKS, keep=0)
    with pytest.raises(OptionError, match="no option"):
        populate(z, tiny.base(), tiny.data(), TASKS, nonsense=1)
    with pytest.raises(DataError, match="unicorn"):
        populate(z, tiny.base(), tiny.data(), [("dog", "unicorn")], producer="random")
    assert len(z) == 0


# ------------------------------------------------------------------------------------------ related tasks


def shared(tasks):
    return Counter(len(set(a) & set(b)) for a, b in combinations(tasks, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_related_tasks_share_none_to_all_but_one_class(seed):
    tasks = draw_related(ANIMALS, 30, seed=seed)
    assert len(tasks) == 30 and len({frozenset(t) for t in tasks}) == 30
    assert all(len(set(t)) == 5 and set(t) <= set(ANIMALS) for t in tasks)
    assert set(shared(tasks)) == {0, 1, 2, 3, 4}
    assert tasks == draw_related(ANIMALS, 30, seed=seed)
    assert tasks != draw_related(ANIMALS, 30, seed=seed + 10)


def test_families_share_four_to_one_classes_with_their_anchor():
    tasks = draw_related(ANIMALS, 30, seed=0)
    # Ten tasks are random, the next ten are of families; an anchor may be a random task that is there already.
    starts = [
        i for i in range(10, 17) for anchor in tasks[:i]
        if [len(set(anchor) & set(t)) for t in tasks[i : i + 4]] == [4, 3, 2, 1]
    ]  # fmt: skip
    assert len(set(starts)) >= 2


def test_neighbourhoods_are_near_by_wordnet():
    tasks = draw_related(ANIMALS, 60, seed=0)
    nouns = dict(zip(ANIMALS, zoo.Task(labels=ANIMALS).synsets))

    def within(task):
        names = [nouns[label] for label in task]
        table = wordnet.wup_matrix(names, names)
        return table[np.triu_indices(5, 1)].mean()

    centre, *rest = tasks[-1]
    similar = sorted((wordnet.wup(nouns[centre], nouns[o]) for o in ANIMALS if o != centre), reverse=True)
    assert min(wordnet.wup(nouns[centre], nouns[o]) for o in rest) >= similar[7]
    assert np.mean([within(t) for t in tasks[40:]]) > np.mean([within(t) for t in tasks[:20]]) + 0.05


def test_related_tasks_that_cannot_be_drawn_end_in_an_error():
    with pytest.raises(OptionError, match="too few"):
        draw_related(ANIMALS[:14], 10)
    with pytest.raises(OptionError, match="cannot draw 60 different related tasks of 2"):
        draw_related(ANIMALS[:10], 60, n_classes=2)
    with pytest.raises(OptionError, match="have a synset"):
        draw_related([f"xqz{i}" for i in range(20)], 9)
