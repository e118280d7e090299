"""Checks of a producer's options: every mistake in one error, and each rule readable beside the option it is for."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zoo.errors import OptionError


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes:
        expected: The rule in words.
        kinds: Types that pass; bool never passes for a number.
        low: Smallest number allowed.
        high: Largest number allowed.
        open: Whether the two limits themselves are outside.
        names: The only values allowed, when given.
        optional: Whether None passes.
    """

    expected: str
    kinds: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    names: tuple[Any, ...] = ()
    optional: bool = False

    def allows(self, value: Any) -> bool:
        """Whether the value passes."""
        if value is None:
            return self.optional
        if not isinstance(value, self.kinds) or (isinstance(value, bool) and bool not in self.kinds):
            return False
        if self.names:
            return value in self.names
        if isinstance(value, int | float) and not isinstance(value, bool):
            inside = self.low < value < self.high if self.open else self.low <= value <= self.high
            return math.isfinite(value) and inside
        return True


def whole(low: int, *, optional: bool = False) -> Rule:
    """An int of at least `low`."""
    return Rule(f"a whole number of at least {low}" + _none(optional), (int,), low=low, optional=optional)


def at_least(low: float, *, optional: bool = False) -> Rule:
    """A finite number of at least `low`."""
    return Rule(f"a number of at least {low:g}" + _none(optional), (int, float), low=low, optional=optional)


def between(low: float, high: float, *, open: bool = False, optional: bool = False) -> Rule:
    """A number in [low, high], or strictly inside when `open`."""
    text = f"a number {'strictly ' if open else ''}between {low:g} and {high:g}" + _none(optional)
    return Rule(text, (int, float), low=low, high=high, open=open, optional=optional)


def one_of(*names: Any) -> Rule:
    """One of a few values."""
    return Rule(" or ".join(repr(n) for n in names), tuple({type(n) for n in names}), names=names)


def flag() -> Rule:
    """True or False."""
    return Rule("True or False", (bool,))


def check_options(producer: Any, **rules: Rule) -> None:
    """Checks a producer's options, for its `__post_init__`.

    Args:
        producer: A dataclass instance with a `name`.
        **rules: The rule of each option.

    Raises:
        OptionError: Lists every option that breaks its rule.
    """
    values = asdict(producer)
    problems = [
        f"{option}: got {values[option]!r}, expected {rule.expected}"
        for option, rule in rules.items()
        if not rule.allows(values[option])
    ]
    if problems:
        raise OptionError(f"{producer.name}: options out of range", problems=problems)


def _none(optional: bool) -> str:
    return " or None" if optional else ""
