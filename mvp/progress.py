"""Progress bars: off when the output is no terminal, silenced by `progress=False`."""

from collections.abc import Iterable, Iterator, Sequence
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


def track(items: Sequence[T] | range, what: str, *, progress: bool = True) -> Iterator[T]:
    """Iterates with a bar."""
    with bar(progress=progress) as shown:
        line = shown.add_task(what, total=len(items))
        iterable: Iterable[T] = items  # type: ignore[assignment]
        for item in iterable:
            yield item
            shown.advance(line)
