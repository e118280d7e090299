"""Records: ids that never change, everything that is checked, and what two equal records are."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from zoo.errors import RecordError, UnknownLabelsError
from zoo.records import FORMAT, Base, Score, SubNetwork, Task, content_id, tensors_digest

WEIGHTS = {"w": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array([1, 2], "<i8")}
WRITERS = [{"layer": "conv1"}, {"layer": "conv2"}]
PLAN = {"axes": {"a0": {"n": 4, "writers": WRITERS}, "a1": {"n": 3, "writers": [{"layer": "conv3"}]}}}
TASK = Task(("dog", "cat"), dataset="cifar10", synsets=("dog.n.01", None), seed=7)
BASE = Base("resnet20", 10, {"size": [3, 32, 32]}, PLAN, WEIGHTS)


def sub(**changes) -> SubNetwork:
    fields = {
        "task": TASK, "base": BASE, "channels": {"a0": [2, 0]}, "weights": WEIGHTS, "producer": "ifp", "keep": 0.5,
        "options": {"p": 0.5, "h": None}, "seed": 3, "parents": ("ab",), "generation": 1, "removed_blocks": ("x",),
        "kept_tokens": {"x": 7},
    }  # fmt: skip
    return SubNetwork(**{**fields, **changes})


# Identity


def test_ids_are_those_of_the_zoos_that_were_written_before():
    """A change here makes every stored zoo unreadable: it needs a new FORMAT."""
    assert FORMAT == 1
    assert tensors_digest(WEIGHTS) == "ef9527ca4ffbeba8fa43163a4f3e71d0a0b36ac9a38e045cf543d3f871948a65"
    assert TASK.id == "0752412d7d60ac497f56c18f8a9b0fa328502070b8beaa922f4ce0610fc90d66"
    assert BASE.id == "aef6cdc8047b9328999dad53db656f5144e89630f9f2e0fa22562e03f148d5ab"
    assert sub().id == "d26d79f3d64914b7ab389492fce6007fab487b3502de7a13ee157113c5d6ebd5"


def test_an_id_is_the_hash_of_canonical_json():
    text = (
        '{"dataset":"cifar10","format":1,"labels":["dog","cat"],"record":"task","seed":7,"split":"train",'
        '"synsets":["n02084071",null]}'
    )
    assert TASK.id == hashlib.sha256(text.encode()).hexdigest()
    assert content_id(b=[1, 2.5], a="\u00fc") == content_id(a="\u00fc", b=(1, 2.5))
    with pytest.raises(ValueError, match="JSON"):
        content_id(x=float("nan"))


def naive_digest(tensors):
    text = b""
    for name, array in sorted(tensors.items()):
        head = json.dumps([name, array.dtype.str, list(array.shape)], separators=(",", ":")).encode()
        text += len(head).to_bytes(8, "little") + head + array.tobytes()
    return hashlib.sha256(text).hexdigest()


def test_a_digest_is_over_names_types_shapes_and_bytes():
    tensors = {**WEIGHTS, "scalar": np.array(1.5), "none": np.zeros((0, 2)), "turned": np.arange(6).reshape(2, 3).T}
    assert tensors_digest(tensors) == naive_digest(tensors) == tensors_digest(dict(reversed(tensors.items())))
    others = [
        {"w": WEIGHTS["w"], "c": WEIGHTS["b"]}, {"w": WEIGHTS["w"].astype("<f8"), "b": WEIGHTS["b"]},
        {"w": WEIGHTS["w"].reshape(3, 2), "b": WEIGHTS["b"]}, {"w": WEIGHTS["w"] + 1, "b": WEIGHTS["b"]},
        {"w": WEIGHTS["w"]}, {},
    ]  # fmt: skip
    assert len({tensors_digest(t) for t in [WEIGHTS, *others]}) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"task": Task(("cat", "dog"), dataset="cifar10", synsets=(None, "dog.n.01"), seed=7)},
        {"base": replace(BASE, name="resnet32")}, {"channels": {"a0": [0, 1]}}, {"channels": {}}, {"producer": "vote"},
        {"keep": 0.25}, {"kind": "mixed"}, {"init": "reinit"}, {"options": {"p": 0.5}}, {"seed": 4}, {"parents": ()},
        {"removed_blocks": ()}, {"kept_tokens": {"x": 8}}, {"weights": {"w": WEIGHTS["w"]}},
        {"element_masks": {"w": np.ones((2, 3), bool)}}, {"mode": "independent", "channels": {"a0@conv1": [0, 2]}},
    ],
)  # fmt: skip
def test_what_defines_a_sub_network_is_part_of_its_id(change):
    generation = {} if change.get("parents", 1) else {"generation": 0}
    assert sub(**change, **generation).id != sub().id and sub(**change, **generation) != sub()


def test_what_was_measured_or_is_said_another_way_is_not():
    other = sub(
        channels={"a0": np.array([0, 2], np.uint8)}, metrics={"accuracy": 0.9}, params=1, macs=2,
        embeddings={"prototype": [1.0]}, created_at=datetime(2001, 1, 1, tzinfo=UTC),
        options={"h": None, "p": 0.5}, weights=dict(reversed(WEIGHTS.items())), parents=["ab"],
    )  # fmt: skip
    assert sub(keep=1).id == sub(keep=1.0).id and sub(seed=np.int64(3)).id == sub().id
    assert other.id == sub().id and other == sub() and len({other, sub()}) == 1
    assert other.accuracy == 0.9 and sub().accuracy is None and other.base_id == BASE.id
    assert replace(BASE, plan={"axes": {}}, info={"accuracy": 1}).id == BASE.id
    assert TASK == Task(("dog", "cat"), dataset="cifar10", synsets=("n02084071", None), seed=7) != Task(("dog", "cat"))


def test_channels_are_sorted_int32_and_cannot_be_changed():
    kept = sub().channels["a0"]
    assert kept.tolist() == [0, 2] and kept.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
    with pytest.raises(TypeError):
        sub().channels["a1"] = kept


# What is refused


@pytest.mark.parametrize(
    ("labels", "fields", "says"),
    [
        (("dog",), {}, r"1 label\(s\) given"), (("dog", "cat", "dog", "cat"), {}, "more than once: cat, dog"),
        (("dog", " "), {}, "label 1 is not a name: ' '"), (("dog", 3), {}, "label 1 is not a name: 3"),
        (("dog", "cat"), {"synsets": ("dog.n.01",)}, "1 synsets for 2 labels"), ("dog", {}, "one sequence of names"),
        ({"dog", "cat"}, {}, "one sequence of names"),
    ],
)  # fmt: skip
def test_labels_that_make_no_task(labels, fields, says):
    with pytest.raises(RecordError, match=says):
        Task(labels, **fields)


def test_synsets_are_looked_up_unless_given_and_must_be_nouns():
    assert Task(["dolphin", "qqqqzz"], dataset="cifar100").synsets == ("n02068974", None)
    assert Task(["dolphin", "x"], synsets=[None, "cat.n.01"]).synsets == (None, "n02121620")
    with pytest.raises(UnknownLabelsError, match=r"dog\.n\.99"):
        Task(["dog", "cat"], synsets=["dog.n.99", None])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": {"a7": [0]}}, "no axis 'a7'"), ({"channels": {"a0": []}}, "at least one of its 4 channels"),
        ({"channels": {"a0": [0.0]}}, "dtype float64, expected integers"),
        ({"channels": {"a0": [True, False, True, True]}}, "dtype bool, expected integers"),
        ({"channels": {"a0": [1, 4]}}, r"index 4 outside 0\.\.3"), ({"channels": {"a0": [-1]}}, "index -1 outside"),
        ({"channels": {"a0": [1, 1, 2]}}, "1 index.es. given more than once"),
        ({"channels": {"a0@conv1": [0]}}, "did you mean mode='independent'"),
        ({"channels": {"a0@conv3": [0]}, "mode": "independent"}, "a layer that writes a0"),
        ({"channels": {"a0": [0]}, "mode": "independent"}, "wants 'axis@layer'"),
        ({"kind": "dense"}, "structured, element, token, mixed"), ({"mode": "x", "channels": {}}, "mode: got 'x'"),
        ({"init": "random"}, "pretrained, reinit"), ({"keep": 0}, "keep: got 0"), ({"keep": 1.01}, "keep"),
        ({"keep": float("nan")}, "keep: got nan"), ({"metrics": {"accuracy": float("inf")}}, "metrics.'accuracy'"),
        ({"keep": "0.5"}, "keep: got '0.5'"), ({"metrics": {"accuracy": None}}, "got None, expected a finite number"),
        ({"embeddings": {"e": [1e300]}}, "embeddings.'e'"), ({"embeddings": {"e": ["x"]}}, "embeddings.'e'"),
        ({"parents": "abc"}, "parents: got one string"),
        ({"embeddings": {"e": [1, np.nan]}}, "embeddings.'e'"), ({"parents": ()}, "generation 1 without parents"),
        ({"weights": {"w": np.array([1, np.nan])}}, "weights.'w'.: holds NaN"),
    ],
)  # fmt: skip
def test_fields_of_a_sub_network_that_contradict_the_plan_or_are_out_of_range(change, says):
    with pytest.raises(RecordError, match=says) as caught:
        sub(**change)
    assert len(caught.value.problems) == 1


def test_everything_that_is_wrong_is_listed():
    with pytest.raises(RecordError) as caught:
        sub(channels={"a0": [9], "a9": [0]}, kind="x", init="x", keep=2, parents=(), metrics={"m": np.nan})
    assert len(caught.value.problems) == 7


# Scores


def test_scores_are_finite_and_equal_when_all_they_say_is():
    vector = np.arange(3, dtype=np.float32)
    leep, embedding = Score("s", "t", "leep", -0.5), Score("b", "t", "prototype", vector=vector)
    assert leep == Score("s", "t", "leep", np.float64(-0.5)) != Score("s", "t", "leep", -0.25)
    assert embedding == Score("b", "t", "prototype", vector=[0, 1, 2]) != Score("b", "t", "prototype", vector=[0, 1, 3])
    assert len({leep, embedding, replace(leep), replace(embedding), replace(leep, device="cpu")}) == 3
    assert embedding.vector.dtype == np.float32
    for bad in ({}, {"value": np.inf}, {"vector": [1, np.inf]}):
        with pytest.raises(RecordError, match="leep"):
            Score("s", "t", "leep", **bad)
