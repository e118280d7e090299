"""Tensors as content-addressed Parquet: one row a tensor (name, dtype, shape, bytes), zstd, page checksums.

A file's name is `records.tensors_digest` of the tensors it holds. The digest is computed again over the decoded tensors
on every read, so that no damaged byte is ever used.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zoo.errors import CorruptionError, RecordError
from zoo.records import Tensors, tensors_digest

MASK = "mask:"
_SCHEMA = pa.schema(
    [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64())), ("bytes", pa.large_binary())]
)
# Bool, signed, unsigned, float: what numpy reads back from bytes without running anything.
_DTYPE = re.compile(r"[|<>](b1|[iu][1248]|f[248])")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def blob_path(digest: str) -> str:
    """Where the tensors of a digest lie, relative to the zoo: "weights/ab/<digest>.parquet".

    Raises:
        CorruptionError: `digest` is not 64 hexadecimal digits; a damaged row must not name a path of its own.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CorruptionError("a weights digest is damaged", got=repr(digest)[:80], expected="64 hexadecimal digits")
    return f"weights/{digest[:2]}/{digest}.parquet"


def encode(tensors: Tensors) -> tuple[str, bytes]:
    """Named arrays as the bytes of a Parquet file.

    Args:
        tensors: {name: array} of booleans, integers or floats (16, 32 or 64 bits), any shape.

    Returns:
        The digest of the tensors and the file's bytes.

    Raises:
        RecordError: An array holds something else (objects, text, complex numbers).
    """
    arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
    if problems := [
        f"{name!r}: dtype {array.dtype}" for name, array in arrays.items() if not _DTYPE.fullmatch(array.dtype.str)
    ]:
        raise RecordError(
            "weights are arrays of booleans, integers or floats of 16 to 64 bits", problems=problems,
            hint="Convert bfloat16 to float32 first",
        )  # fmt: skip
    table = pa.table(
        [
            list(arrays),
            [array.dtype.str for array in arrays.values()],
            [list(array.shape) for array in arrays.values()],
            [array.tobytes() for array in arrays.values()],
        ],
        schema=_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return tensors_digest(arrays), sink.getvalue().to_pybytes()


def decode(data: bytes, digest: str) -> dict[str, np.ndarray]:
    """The tensors of a file, checked.

    Args:
        data: The file's bytes.
        digest: What `tensors_digest` of its tensors must be.

    Returns:
        {name: array}; the arrays are read-only.

    Raises:
        CorruptionError: The bytes are no such Parquet file, or the tensors have another digest.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        columns = [table[name].to_pylist() for name in _SCHEMA.names]
        tensors = {}
        for name, dtype, shape, raw in zip(*columns):
            if not _DTYPE.fullmatch(dtype):
                raise CorruptionError(f"weights {digest}: tensor {name!r} is damaged", got=repr(dtype)[:40])
            tensors[name] = np.frombuffer(raw, dtype=np.dtype(dtype)).reshape(shape)
    # Damaged Parquet raises almost anything: Arrow's own errors, OSError from the decompressor, KeyError and TypeError
    # from a schema that is not ours, ValueError from a shape that does not fit.
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CorruptionError):
            raise
        raise CorruptionError(
            f"weights {digest} cannot be read ({str(error)[:120]})", hint="Run `zoo verify PATH` to find all damage"
        ) from error
    found = tensors_digest(tensors)
    if found != digest:
        raise CorruptionError(
            f"weights {digest} hold other tensors than they were stored with", got=found, expected=digest,
            hint="Run `zoo verify PATH` to find all damage",
        )  # fmt: skip
    return tensors


class LazyTensors(Mapping[str, np.ndarray]):
    """Named arrays that are read, and checked, when first asked for.

    Args:
        load: Returns the tensors; called at most once.
    """

    def __init__(self, load: Callable[[], Mapping[str, np.ndarray]]) -> None:
        self._load = cache(load)
        self._read = False

    def _tensors(self) -> Mapping[str, np.ndarray]:
        tensors = self._load()
        self._read = True
        return tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors())

    def __len__(self) -> int:
        return len(self._tensors())

    def __repr__(self) -> str:
        return f"<{len(self)} tensors>" if self._read else "<tensors, not read yet>"


def lazy(load: Callable[[], Mapping[str, np.ndarray]]) -> tuple[LazyTensors, LazyTensors]:
    """The weights and the element masks of one file, which is read once for both, when either is first asked for."""
    load = cache(load)

    def part(masks: bool) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(MASK) if masks else name: array
            for name, array in load().items()
            if name.startswith(MASK) == masks
        }

    return LazyTensors(lambda: part(False)), LazyTensors(lambda: part(True))
