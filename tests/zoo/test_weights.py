"""Tensors there and back, and that no flipped bit is ever decoded."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.errors import CorruptionError, RecordError
from zoo.records import tensors_digest
from zoo.weights import LazyTensors, blob_path, decode, encode, lazy

TENSORS = {
    "conv.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "half": np.arange(5, dtype=np.float16), "scalar": np.array(7, np.int64), "empty": np.zeros((0, 3), np.float64),
    "flags": np.array([True, False]), "big-endian": np.arange(3, dtype=">i4"),
    "name with \u00fc/../x": np.ones(1, np.uint8), "transposed": np.arange(6.0).reshape(2, 3).T,
}  # fmt: skip


def test_tensors_survive_the_way_there_and_back():
    digest, data = encode(TENSORS)
    back = decode(data, digest)
    assert digest == tensors_digest(TENSORS) and set(back) == set(TENSORS)
    for name, array in TENSORS.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert np.array_equal(back[name], array)


def test_the_digest_does_not_depend_on_the_order_of_names():
    assert encode(TENSORS)[0] == encode(dict(reversed(TENSORS.items())))[0]


def test_decoded_arrays_cannot_be_changed_in_place():
    digest, data = encode(TENSORS)
    with pytest.raises(ValueError, match="read-only"):
        decode(data, digest)["half"][0] = 9


def test_no_single_flipped_bit_gives_other_tensors():
    digest, data = encode(TENSORS)
    rng = np.random.default_rng(0)
    harmless = 0
    for position in rng.choice(len(data) * 8, size=400, replace=False):
        bad = bytearray(data)
        bad[position // 8] ^= 1 << (position % 8)
        try:
            back = decode(bytes(bad), digest)
        except CorruptionError:
            continue
        # Bytes that carry no tensor (statistics, padding, the writer's name) may change; the tensors may not.
        harmless += 1
        assert tensors_digest(back) == digest
    assert harmless < 300


@pytest.mark.parametrize("cut", [0, 1, 4, 100, -1, -9])
def test_a_truncated_file_is_corrupt(cut):
    digest, data = encode(TENSORS)
    with pytest.raises(CorruptionError):
        decode(data[:cut], digest)


def test_the_tensors_of_another_digest_are_corrupt():
    _, data = encode(TENSORS)
    with pytest.raises(CorruptionError, match="other tensors"):
        decode(data, "0" * 64)


@pytest.mark.parametrize("dtype", ["|O", "<V8", "<U4", "<c8", "", "nonsense", "<M8[s]"])
def test_dtypes_that_are_not_numbers_are_not_read(dtype):
    schema = pa.schema(
        [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64())), ("bytes", pa.large_binary())]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([["x"], [dtype], [[1]], [b"\0" * 8]], schema=schema), sink)
    with pytest.raises(CorruptionError):
        decode(sink.getvalue().to_pybytes(), "0" * 64)


def test_a_parquet_file_of_another_kind_is_corrupt():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(CorruptionError):
        decode(sink.getvalue().to_pybytes(), "0" * 64)


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.array([1j]), np.zeros(1, "V2")])
def test_arrays_that_are_not_numbers_are_refused(array):
    with pytest.raises(RecordError, match="'x'"):
        encode({"x": array})


@pytest.mark.parametrize("digest", ["", "../../x", "A" * 64, "0" * 63, "0" * 65, "0" * 63 + "/", "0" * 64 + "\n"])
def test_only_a_digest_names_a_file(digest):
    with pytest.raises(CorruptionError):
        blob_path(digest)
    assert blob_path("ab" + "0" * 62) == "weights/ab/ab" + "0" * 62 + ".parquet"


def test_lazy_tensors_are_read_once_and_split_from_masks():
    reads = []

    def load():
        reads.append(1)
        return {"w": np.ones(2), "mask:w": np.array([True, False])}

    weights, masks = lazy(load)
    assert not reads and "not read" in repr(weights)
    assert list(weights) == ["w"] and list(masks) == ["w"] and masks["w"].tolist() == [True, False]
    assert len(weights) == 1 and "w" in weights and len(reads) == 1


def test_a_failed_read_is_tried_again():
    attempts = []

    def load():
        attempts.append(1)
        if len(attempts) == 1:
            raise CorruptionError("damaged")
        return {"w": np.ones(1)}

    tensors = LazyTensors(load)
    with pytest.raises(CorruptionError):
        tensors["w"]
    assert tensors["w"] == 1
