"""Fixtures that the store's tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from factory import make_base, make_sub
from zoo.records import Base, SubNetwork


@pytest.fixture(scope="session")
def base() -> Base:
    """One fake base."""
    return make_base()


@pytest.fixture
def new_sub(base: Base) -> Callable[..., SubNetwork]:
    """Makes sub-networks of the one fake base."""
    return lambda seed=0, **changes: make_sub(seed, **{"base": base, **changes})


@pytest.fixture
def z(tmp_path: Path) -> zoo.Zoo:
    """An empty zoo."""
    return zoo.open(tmp_path / "my.zoo")
