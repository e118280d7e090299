import numpy as np
import pytest
import torch

import mvp
import zoo
from mvp.bases import full_model
from mvp.data import Data
from mvp.populate import populate
from mvp.score import combine, embed, embed_stored, prototypes, responses, score, score_pairs
from mvp.subnetwork import build
from mvp.task2vec import task2vec
from tests import tiny
from tests.tiny import registered  # noqa: F401
from zoo.errors import BaseMismatchError, DataError, MissingScoresError, OptionError
from zoo.hscore import hscore
from zoo.logme import logme

TASKS = [("dog", "cat", "horse"), ("lion", "tiger", "wolf"), ("fox", "bear", "dog"), ("goat", "sheep", "lion")]
NEW = ("wolf", "fox", "goat")


@pytest.fixture
def z(registered, tmp_path):  # noqa: F811
    z = zoo.open(tmp_path / "z")
    populate(z, tiny.base(), tiny.data(), TASKS, producer="random", keep=0.5, leep=False)
    return z


def stored(z, measure="leep"):
    rows = z.sql("select source, target, value from scores where measure = ?", [measure]).fetchall()
    return {(source, target): value for source, target, value in rows}


@torch.no_grad()
def naive_leep(sub, data):
    """Equations 1 and 2 of Nguyen et al., image by image, with the sub-network's own classes as source labels."""
    theta = build(sub)(tiny.SPEC(data.train_images)).double().softmax(1).numpy()
    y, n = data.train_labels.numpy(), len(data.train_labels)
    joint = np.zeros((y.max() + 1, theta.shape[1]))
    for i in range(n):
        joint[y[i]] += theta[i] / n
    conditional = joint / joint.sum(0)
    return sum(np.log((conditional[y[i]] * theta[i]).sum()) for i in range(n)) / n


def test_leep_rows_are_the_definition_on_the_training_images(z):
    data = tiny.task(*NEW)
    assert score(z, data) == len(TASKS)
    rows = stored(z)
    assert set(rows) == {(i, data.task.id) for i in z.ids()}
    for (i, _), value in rows.items():
        assert value == pytest.approx(naive_leep(z.get(i), data), abs=1e-5)
        assert -np.log(3) <= value <= 0
    assert len(set(rows.values())) == len(TASKS)
    assert z.nearest(data.task, k=1, by="leep").id[0] == max(rows, key=rows.get)[0]


@torch.no_grad()
def test_nce_logme_and_hscore_are_of_the_sub_networks_own_outputs_and_features(z):
    data = tiny.task(*NEW)
    y = data.train_labels.numpy()
    assert score(z, data, by=["nce", "logme", "hscore", "leep"]) == 4 * len(TASKS)
    for i in z.ids():
        model, seen = build(z.get(i)), []
        model.fc.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].numpy()))
        predicted = model(tiny.SPEC(data.train_images)).argmax(1).numpy()
        key = (i, data.task.id)
        joint = {(a, b): np.mean((y == a) & (predicted == b)) for a in range(3) for b in range(3)}
        expected = sum(p * np.log(p / np.mean(predicted == b)) for (_, b), p in joint.items() if p)
        assert stored(z, "nce")[key] == pytest.approx(expected, abs=1e-6)
        assert stored(z, "logme")[key] == pytest.approx(logme(seen[0], y), abs=1e-5)
        assert stored(z, "hscore")[key] == pytest.approx(hscore(seen[0], y), abs=1e-4)
        assert stored(z)[key] == pytest.approx(naive_leep(z.get(i), data), abs=1e-5)
    for by in ("nce", "logme", "hscore"):
        rows = stored(z, by)
        assert z.nearest(data.task, k=1, by=by).score[0] == max(rows.values()) and len(set(rows.values())) > 1


def test_several_measures_share_the_passes(z, monkeypatch):
    from importlib import import_module

    runs = []
    monkeypatch.setattr(import_module("mvp.score"), "build", lambda sub: runs.append(sub.id) or build(sub))
    score(z, tiny.task(*NEW), by=("leep", "hscore", "leep", "prototype"))
    assert sorted(runs) == sorted(z.ids()) and len(stored(z, "prototype")) == 1


def test_task2vec_finds_neighbours_once_the_stored_tasks_are_embedded(z):
    data = tiny.task(*NEW)
    assert score(z, data, by="task2vec", images=9, seed=1) == 1
    with pytest.raises(MissingScoresError, match="4 of 4 sub-networks have no embedding"):
        z.nearest(data.task, by="task2vec", k=1)
    assert embed_stored(z, tiny.data(), images=9, seed=1) == len(TASKS)
    assert embed_stored(z, tiny.data(), images=9, seed=1) == 0
    vectors = {i: task2vec(tiny.base(), tiny.task(*z.get(i).task.labels).sample(9, seed=1), seed=1).astype(float)
               for i in z.ids()}  # fmt: skip
    mine = task2vec(tiny.base(), data.sample(9, seed=1), seed=1).astype(float)

    def similarity(a, b):
        used = a + b > 0  # some filters of the tiny base never fire
        x, y = (v[used] / (a + b)[used] for v in (a, b))
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    expected = {i: similarity(mine, v) for i, v in vectors.items()}
    found = z.nearest(data.task, k=None, by="task2vec")
    assert dict(zip(found.id, found.score)) == pytest.approx(expected, abs=1e-6)


def test_stored_tasks_are_embedded_where_they_lack_it(z):
    assert embed_stored(z, tiny.data(), by="prototype") == 0, "populate did"
    some = tiny.data().subset([label for label in tiny.LABELS if label != "lion"])
    assert embed_stored(z, some, images=9) == 2
    with pytest.raises(OptionError, match="prototype or task2vec"):
        embed_stored(z, some, by="leep")


@pytest.mark.parametrize("by", ["leep", "prototype", "hscore", "task2vec"])
def test_a_second_call_writes_nothing(by, z):
    data = tiny.task(*NEW)
    assert score(z, data, by=by) == (len(TASKS) if by in ("leep", "hscore") else 1)
    version = z.version
    assert score(z, data, by=by) == 0
    assert z.version == version


def test_only_what_is_missing_is_run(z):
    data = tiny.task(*NEW)
    some = z.sql("select id from subnetworks where list_contains(labels, 'dog')").fetchall()
    assert score(z, data, where="list_contains(labels, 'dog')") == len(some) == 2
    with pytest.raises(MissingScoresError, match="2 of 4"):
        z.nearest(data.task, k=1, by="leep")
    assert score(z, data) == 2 and len(stored(z)) == 4


def test_responses_are_softmax_outputs_in_label_order(z):
    sub = z.get(z.ids()[0])
    theta = responses(sub, tiny.task().test_images, tiny.SPEC, device=tiny.CPU)
    logits = build(sub)(tiny.SPEC(tiny.task().test_images))
    assert theta.dtype == np.float32 and theta.shape == (24, 3)
    np.testing.assert_allclose(theta, logits.softmax(1).detach().numpy(), atol=1e-6)


def test_all_pairs_equal_each_task_on_its_own(z, tmp_path):
    written = score_pairs(z, tiny.data())
    pairs = stored(z)
    assert written == len(pairs) == len(TASKS) ** 2
    other = zoo.open(tmp_path / "other")
    other.add_many([z.get(i) for i in z.ids()])
    for labels in TASKS:
        score(other, tiny.data().subset(labels, seed=0))
    one_by_one = stored(other)
    assert one_by_one.keys() == pairs.keys()
    assert all(pairs[k] == pytest.approx(v, abs=1e-6) for k, v in one_by_one.items())


def test_all_pairs_go_on_where_they_stopped(z, monkeypatch):
    from importlib import import_module

    calls = []

    def dying(sub, *args, **options):
        calls.append(sub.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return responses(sub, *args, **options)

    monkeypatch.setattr(import_module("mvp.score"), "responses", dying)
    with pytest.raises(KeyboardInterrupt):
        score_pairs(z, tiny.data())
    assert len(stored(z)) == 2 * len(TASKS)
    assert score_pairs(z, tiny.data()) == 2 * len(TASKS)
    assert len(calls) == 3 + 2 and calls[3] == calls[2]
    assert score_pairs(z, tiny.data()) == 0


def test_all_pairs_leave_out_tasks_of_other_data_sets(z):
    d = tiny.data()
    other = Data("other", d.labels, d.train_images, d.train_labels, d.test_images, d.test_labels)
    assert score_pairs(z, other) == 0
    mvp_sub = mvp.prune(tiny.base(), other.subset(["dog", "cat"]), producer="random", keep=0.5)
    z.add(mvp_sub)
    assert score_pairs(z, tiny.data()) == (len(TASKS) + 1) * len(TASKS)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_prototypes_are_means_of_unit_features(name):
    data, model = tiny.data(60, 8), full_model(tiny.base(name))  # 600 images: more than a batch
    seen = []
    head = model.fc if name == "cnn" else model.head
    head.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().double()))
    model(tiny.SPEC(data.train_images))
    expected = np.zeros((10, seen[0].shape[1]))
    for feature, y in zip(seen[0].numpy(), data.train_labels.tolist()):
        expected[y] += feature / np.linalg.norm(feature) / 60
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = prototypes(tiny.base(name), data)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    mean = expected.mean(0)
    np.testing.assert_allclose(embed(tiny.base(name), data), mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(combine(got), mean / np.linalg.norm(mean), atol=1e-5)


def test_embeddings_do_not_depend_on_the_order_of_labels_nor_on_class_sizes():
    one = embed(tiny.base(), tiny.task("dog", "cat", "fox"))
    np.testing.assert_allclose(one, embed(tiny.base(), tiny.task("fox", "dog", "cat")), atol=1e-6)
    d = tiny.task("dog", "cat")
    twice = torch.cat([torch.arange(len(d.train_labels)), torch.nonzero(d.train_labels == 0).flatten()])
    uneven = Data("animals", d.labels, d.train_images[twice], d.train_labels[twice], d.test_images, d.test_labels)
    np.testing.assert_allclose(embed(tiny.base(), d), embed(tiny.base(), uneven), atol=1e-6)


def test_prototype_scores_find_neighbours(z):
    data = tiny.task(*NEW)
    score(z, data, by="prototype")
    vectors = {i: z.get(i).embeddings["prototype"] for i in z.ids()}
    mine = embed(tiny.base(), data)
    best = max(vectors, key=lambda i: float(vectors[i] @ mine))
    assert z.nearest(data.task, k=1, by="prototype").id[0] == best


def test_a_sample_of_images_is_balanced_and_seeded(z, monkeypatch):
    data, seen = tiny.task(*NEW), []
    original = Data.sample
    monkeypatch.setattr(Data, "sample", lambda self, n, seed: seen.append(original(self, n, seed=seed)) or seen[-1])
    assert score(z, data, images=12, seed=1) == len(TASKS)
    (sampled,) = seen
    assert torch.bincount(sampled.train_labels).tolist() == [4, 4, 4] and sampled.task == data.task
    values = stored(z)
    for (i, _), value in values.items():
        assert value == pytest.approx(naive_leep(z.get(i), sampled), abs=1e-5)
    assert score(z, data, images=12, seed=2) == len(TASKS) and stored(z) != values


def test_wrong_use(z, tmp_path):
    data = tiny.task(*NEW)
    for by in ("wup", "nonsense", [], ["leep", "wup"]):
        with pytest.raises(OptionError, match="leep or nce or logme"):
            score(z, data, by=by)
        with pytest.raises(OptionError, match="leep or nce or logme"):
            score(zoo.open(tmp_path / "empty"), data, by=by)
    with pytest.raises(OptionError, match="where"):
        score(z, data, where="no_such_column > 1")
    d = data
    one = Data("animals", d.labels, d.train_images[:1], d.train_labels[:1], d.test_images, d.test_labels)
    with pytest.raises(DataError, match="too few"):
        score(z, one)
    z.add(mvp.prune(tiny.base("dropout"), tiny.task(), producer="random", keep=0.5))
    with pytest.raises((OptionError, BaseMismatchError), match="2 bases"):
        score(z, data)
    assert score(z, data, base=tiny.base().id) == len(TASKS)


def test_encodings_of_a_mask_generator_find_neighbours(tmp_path):
    z, path = zoo.open(tmp_path / "z"), tiny.generator()
    options = {"generator": path, "prune_steps": 1, "finetune_steps": 0, "set_images": 12, "batch_size": 16}
    groups = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    populate(z, tiny.base(), tiny.data(), [[tiny.LABELS[c] for c in g] for g in groups], producer="stamp", keep=0.5,
             leep=False, **options)  # fmt: skip
    assert all(set(z.get(i).embeddings) == {"stamp", "prototype"} for i in z.ids())
    data = tiny.task(2, 1, 9)
    assert score(z, data, by="stamp", generator=path) == 1 and score(z, data, by="stamp", generator=str(path)) == 0
    found = z.nearest(data.task, k=3, by="stamp")
    (row,) = z.sql("select vector from scores where measure = 'stamp'").fetchall()
    mine = np.array(row[0])
    cosines = {}
    for i in z.ids():
        theirs = z.get(i).embeddings["stamp"]
        cosines[i] = float(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
    assert list(found.id) == sorted(cosines, key=lambda i: -cosines[i])
    assert found.score == pytest.approx([cosines[i] for i in found.id], abs=1e-6)
    with pytest.raises(OptionError, match="a file for 'stamp'"):
        score(z, data, by="stamp")
    with pytest.raises(OptionError, match="none for the others"):
        score(z, data, by="prototype", generator=path)
    with pytest.raises(BaseMismatchError, match="another base"):
        score(z, data, by="stamp", generator=tiny.generator("dropout"))
