"""The notebooks run from top to bottom on the sample zoo, and are stored with the outputs that a reader should see."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_shows_its_results(path):
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert any(c.outputs for c in code)
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]


def test_there_are_notebooks():
    assert {p.stem for p in NOTEBOOKS} >= {"01_query", "02_add_a_model", "03_iou_by_depth", "04_write_a_producer"}
