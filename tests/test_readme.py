"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)


def test_there_are_four_things_to_do():
    assert len(BLOCKS) == 4


SLOW = [pytest.param(block, marks=pytest.mark.slow) for block in (BLOCKS[1], BLOCKS[3])]


@pytest.mark.parametrize("block", [BLOCKS[0], *SLOW, BLOCKS[2]])
def test_it_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
