"""Fixtures that the store's tests share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from factory import make_base, make_sub

import zoo
from zoo.records import Base, SubNetwork


@pytest.fixture(scope="session")
def base() -> Base:
    """One fake base."""
    return make_base()


@pytest.fixture
def new_sub(base: Base) -> Callable[..., SubNetwork]:
    """Makes sub-networks of the one fake base."""
    return lambda seed=0, **changes: make_sub(seed, **{"base": base, **changes})


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty zoo, to be copied: that is quicker than making four Delta tables a test."""
    return Path(zoo.open(tmp_path_factory.mktemp("empty") / "my.zoo").path)


@pytest.fixture
def z(empty: Path, tmp_path: Path) -> zoo.Zoo:
    """An empty zoo."""
    return zoo.open(shutil.copytree(empty, tmp_path / "my.zoo"), create=False)
