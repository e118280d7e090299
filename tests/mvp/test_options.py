from dataclasses import dataclass

import pytest

from mvp.options import at_least, between, check_options, flag, one_of, whole
from zoo.errors import OptionError


@dataclass
class Member:
    steps: object = 3
    share: object = 0.5
    lr: object = 0.0
    mode: object = "a"
    deep: object = True
    name = "member"

    def check(self):
        check_options(
            self, steps=whole(1, optional=True), share=between(0, 1, open=True), lr=at_least(0), mode=one_of("a", "b"),
            deep=flag(),
        )  # fmt: skip


@pytest.mark.parametrize("good", [{}, {"steps": None}, {"share": 1e-9}, {"lr": 7}, {"mode": "b"}, {"deep": False}])
def test_what_passes(good):
    Member(**good).check()


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"steps": 1.0}, {"steps": True}, {"steps": "2"}, {"share": 0}, {"share": 1}, {"share": None},
        {"share": float("nan")}, {"lr": -1e-9}, {"lr": float("inf")}, {"mode": "c"}, {"mode": 1}, {"deep": 1},
    ],
)  # fmt: skip
def test_what_does_not(bad):
    with pytest.raises(OptionError, match=f"member(.|\n)*{next(iter(bad))}: got"):
        Member(**bad).check()


def test_all_mistakes_at_once_with_the_rule():
    with pytest.raises(OptionError) as error:
        Member(steps=0, mode="c", lr=-1).check()
    text = str(error.value)
    assert all(part in text for part in ("steps", "at least 1 or None", "'a' or 'b'", "lr: got -1"))
    assert "share" not in text
