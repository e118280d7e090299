import io

import pytest
from rich.console import Console

from mvp import progress
from mvp.progress import bar, track


@pytest.fixture
def terminal(monkeypatch):
    """Bars write to this text as if it were a terminal."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=text, force_terminal=True, width=100))
    return text


def test_it_yields_every_item_in_order():
    assert list(track([3, 1, 2], "x")) == [3, 1, 2]
    assert list(track(range(4), "x", progress=False)) == [0, 1, 2, 3]
    assert list(track([], "x")) == []


def test_nothing_is_shown_where_there_is_no_terminal(capsys):
    list(track(range(3), "working"))
    with bar() as shown:
        shown.add_task("working", total=1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done(terminal):
    for _ in track(range(3), "working"):
        pass
    assert "working" in terminal.getvalue() and "3/3" in terminal.getvalue()


def test_it_can_be_silenced(terminal):
    list(track(range(3), "working", progress=False))
    assert terminal.getvalue() == ""


def test_it_is_stderr_that_is_written_to(monkeypatch):
    asked = []
    monkeypatch.setattr(progress, "Console", lambda **options: asked.append(options) or Console(file=io.StringIO()))
    bar()
    assert asked == [{"stderr": True}]


def test_an_error_inside_leaves_no_bar_behind(terminal):
    def fails():
        for _ in track(range(3), "first"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    # rich refuses a second live display, so this would raise if the first were still there.
    assert list(track(range(2), "second")) == [0, 1]
