"""Every exception of both packages.

A message says what is wrong, what was got, what was expected and what to do next, in that order. Where several things
are wrong at once, all of them are listed: `problems` holds them as separate strings.
"""

from collections.abc import Sequence
from typing import Any


class ZooError(Exception):
    """Root of every error this project raises on purpose.

    Args:
        what: The mistake in one clause, naming the thing it is about ("layer2.0.conv1: 64 channels given").
        got: What was there. Left out of the message when None.
        expected: What should have been there. Left out of the message when None.
        hint: What to do next, as a full sentence.
        problems: Several mistakes found in one go; listed one a line.
    """

    def __init__(
        self,
        what: str,
        *,
        got: Any = None,
        expected: Any = None,
        hint: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        self.problems = tuple(problems)
        message = what
        if got is not None:
            message += f"; got {got}"
        if expected is not None:
            message += f"; expected {expected}"
        for problem in self.problems:
            message += f"\n  - {problem}"
        if hint:
            message += f"\n{hint}" if self.problems else f". {hint}"
        super().__init__(message)


class RecordError(ZooError, ValueError):
    """A task, base or sub-network whose fields contradict each other or the base's plan."""


class OptionError(ZooError, ValueError):
    """An argument outside its range: keep outside (0, 1], k below 1, an unknown measure or producer."""


class DataError(ZooError, ValueError):
    """Images or labels that do not fit: wrong size or type, too few, a missing file, an unknown class."""


class PlanError(ZooError, ValueError):
    """A channel set that the plan cannot follow: unknown axis, index out of range, an axis marked unsupported."""


class BaseMismatchError(ZooError, ValueError):
    """Sub-networks of different bases or modes where one is required, or weights that belong to another base."""


class MixtureError(ZooError, ValueError):
    """A study over sub-networks that may not be compared; lists what is there and how to choose."""


class UnknownLabelsError(ZooError, ValueError):
    """Labels without a synset where a WordNet measure needs one; lists all of them with suggestions."""


class MissingScoresError(ZooError, LookupError):
    """Scores that a query needs and the zoo lacks; names the call that computes them."""


class NotFoundError(ZooError, LookupError):
    """No record of that id (or more than one of that prefix)."""


class EmptyZooError(ZooError, LookupError):
    """Nothing to choose from: an empty zoo, or filters that leave fewer candidates than asked for."""


class NotAZooError(ZooError, ValueError):
    """The folder exists, is not empty, and is no zoo."""


class FormatError(ZooError, ValueError):
    """A zoo of a newer format than this version reads."""


class CorruptionError(ZooError):
    """Bytes that do not have the hash they were stored under, or a file that the log names and the folder lacks."""


class ReadOnlyError(ZooError, PermissionError):
    """A write to a zoo that is pinned, shipped, or in a folder without write permission."""


class ConflictError(ZooError, RuntimeError):
    """Other writers won every retry, or the process was forked after it had touched a zoo."""
