"""Compiled helpers against numpy, and compiling where no folder keeps what was compiled."""

import subprocess
import sys

import numba
import numpy as np
import pytest

from zoo.kernels import _popcount, compiled, widen


def test_every_half_of_at_least_zero_is_widened_exactly():
    bits = np.arange(0x7C00, dtype=np.uint16)  # zero, subnormals, normals up to 65504
    wide = np.empty(len(bits), np.float32)
    widen(bits, wide)
    assert (wide == bits.view(np.float16).astype(np.float32)).all()


def test_no_other_half_looks_like_a_probability():
    bits = np.arange(0x7C00, 0x10000, dtype=np.uint32).astype(np.uint16)  # infinite, NaN, negative, -0.0
    wide = np.empty((1, len(bits)), np.float32)
    widen(bits[None], wide)
    assert wide.min() > 60_000


def test_popcount_of_words():
    words = np.random.default_rng(0).integers(0, 2**64, 200, dtype=np.uint64)
    words[:2] = 0, 2**64 - 1

    @numba.njit
    def counts(words):
        return np.array([_popcount(word) for word in words])

    assert (counts(words) == np.bitwise_count(words)).all()


def test_without_a_folder_to_keep_code_in_a_function_is_still_compiled(monkeypatch):
    njit, asked = numba.njit, []

    def nowhere(**options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", nowhere)
    add = compiled(lambda a, b: a + b)
    assert asked == [True, False] and add(2, 3) == 5


@pytest.mark.parametrize("module", ["zoo", "zoo.query", "zoo.depth", "zoo.leep_intervals", "zoo.index"])
def test_numba_is_imported_by_the_first_call_only(module):
    code = f"import sys, {module}; sys.exit(bool({{'numba', 'scipy', 'faiss'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
