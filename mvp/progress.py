"""Progress bars: off when the output is no terminal, silenced by `progress=False`."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def bar(*, progress: bool = True) -> Progress:
    """A rich progress bar with an estimate of the time left, on stderr."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not progress or not console.is_terminal,
    )  # fmt: skip


def track(items: Sequence[T], what: str, *, progress: bool = True) -> Iterator[T]:
    """Iterates with a bar."""
    with bar(progress=progress) as shown:
        line = shown.add_task(what, total=len(items))
        for item in items:
            yield item
            shown.advance(line)
