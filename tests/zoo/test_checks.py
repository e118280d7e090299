"""What does not fit its base: one clear error that lists everything, and an unchanged zoo."""

from pathlib import Path

import numpy as np
import pytest
from factory import make_base, make_tensors

from zoo.checks import width
from zoo.errors import RecordError


def state(path) -> dict[str, int]:
    """Every file below a folder with its size."""
    return {str(p.relative_to(path)): p.stat().st_size for p in Path(path).rglob("*") if p.is_file()}


def tensors(**changes):
    found = {**make_tensors(0, a0=4, a1=3, classes=5), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {k: v for k, v in found.items() if v is not None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": tensors(fc__bias=np.zeros(10, np.float32))}, r"'fc.bias'\]: shape \(10,\), expected \(5,\)"),
        ({"weights": tensors(conv1__weight=np.zeros((8, 3, 3, 3), np.float32))}, r"expected \(4, 3, 3, 3\)"),
        ({"weights": tensors(attn__weight=np.zeros((8, 6), np.float32))}, r"expected \(8, 3\)"),
        ({"weights": tensors(bn1__num_batches_tracked=np.zeros(2))}, r"shape \(2,\), expected \(\)"),
        ({"weights": tensors(conv1__weight=None)}, "'conv1.weight'.: missing"),
        ({"weights": tensors(bogus=np.zeros(1))}, "'bogus'.: the base has no such tensor"),
        ({"weights": tensors(fc__bias=np.array(["a"] * 5))}, "expected booleans, integers or floats"),
        ({"channels": {"a2": [0, 1]}, "weights": make_tensors(0, classes=5)}, "cannot be pruned: its width is fixed"),
        ({"options": {"f": print}}, "JSON"),
        ({"options": {3: "x"}}, "JSON"),
        ({"macs": 2**65}, "does not fit"),
        ({"producer": "\udcff"}, "does not fit"),
        ({"weights_digest": "0" * 64}, "do not have the digest"),
        ({"weights": tensors(fc__bias=np.full(5, np.nan, np.float32)), "weights_digest": "0" * 64}, "NaN"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_no_trace(z, new_sub, change, says):
    before = state(z.path)
    with pytest.raises(RecordError, match=says):
        z.add(new_sub(**change))
    with pytest.raises(RecordError, match=says):
        z.add_many([new_sub(1), new_sub(**change)])
    assert state(z.path) == before and z.verify().ok and len(z) == 0


def test_everything_that_is_wrong_is_listed_at_once(z, new_sub):
    bad = tensors(fc__bias=np.zeros(3, np.float32), conv1__weight=None, extra=np.zeros(1))
    with pytest.raises(RecordError) as caught:
        z.add(new_sub(weights=bad))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("thing", [None, "id", {"a": 1}, make_base()])
def test_only_sub_networks_are_added(z, thing):
    with pytest.raises(RecordError, match="only sub-networks"):
        z.add(thing)


def test_a_base_whose_tensors_are_not_those_of_its_digest(z, new_sub):
    forged = make_base(weights=make_tensors(3), weights_digest=make_base().weights_digest)
    before = state(z.path)
    with pytest.raises(RecordError, match="base fake"):
        z.add(new_sub(base=forged))
    assert state(z.path) == before


def test_independent_sub_networks_keep_the_full_size(z, new_sub):
    full = make_tensors(9, classes=5)
    sub = new_sub(mode="independent", channels={"a0@conv1": [1, 2]}, weights=full)
    assert z.get(z.add(sub)).channels["a0@conv1"].tolist() == [1, 2]
    with pytest.raises(RecordError, match="expected"):
        z.add(new_sub(mode="independent", channels={"a0@conv1": [1, 3]}))


def test_tensors_of_removed_blocks_may_be_missing(z, new_sub):
    without = tensors(conv2__weight=None)
    with pytest.raises(RecordError, match="missing"):
        z.add(new_sub(weights=without))
    assert z.add(new_sub(weights=without, removed_blocks=("conv2",))) in z


def test_the_width_of_an_expression():
    widths = {"a": 3, "b": 5}
    assert width(7, widths) == 7 and width("b", widths) == 5
    assert width({"cat": ["a", {"prod": ["b", 2]}, 1]}, widths) == 3 + 5 * 2 + 1
    for wrong in (None, {"sum": ["a"]}, True, 1.5, ["a"]):
        with pytest.raises(TypeError):
            width(wrong, widths)
    with pytest.raises(KeyError):
        width("c", widths)
