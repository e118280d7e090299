"""`import zoo` is quick, loads nothing heavy, and offers every public name."""

import subprocess
import sys

import pytest

import zoo

HEAVY = ("torch", "torchvision", "timm", "pandas", "polars", "matplotlib", "faiss", "duckdb", "deltalake", "pyarrow",
         "nltk", "rich", "sklearn", "numpy")  # fmt: skip

NOT_TO_READ = ("torch", "torchvision", "timm", "pandas", "polars", "matplotlib", "faiss", "duckdb", "nltk", "rich")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_nothing_heavy():
    code = f"import sys, zoo; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_reading_a_zoo_loads_only_arrow_and_delta(tmp_path):
    zoo.open(tmp_path / "z")
    code = f"import sys, zoo; len(zoo.open({str(tmp_path / 'z')!r}))"
    code += f"; print([m for m in {NOT_TO_READ} if m in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize("name", zoo.__all__)
def test_public_names(name):
    assert getattr(zoo, name) is not None and name in dir(zoo)


def test_functions_are_not_hidden_by_their_modules():
    code = "import zoo.leep, zoo; from zoo.query import nearest; from zoo import leep"
    code += "; print(callable(zoo.leep), callable(leep))"
    assert run(code) == "True True"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = zoo.nope
    with pytest.raises(ImportError):
        exec("from zoo import nope", {})


def test_the_version_is_that_of_the_project():
    import tomllib
    from pathlib import Path

    project = Path(zoo.__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("not a checkout")
    assert tomllib.loads(project.read_text())["project"]["version"] == zoo.__version__
