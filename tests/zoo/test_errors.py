"""What an error says, and what it can be caught as."""

import inspect
import pickle

import pytest

import zoo
from zoo import errors
from zoo.errors import CorruptionError, OptionError, RecordError, ZooError

ALL = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, ZooError)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "keep is too large"),
        ({"got": 2}, "keep is too large; got 2"),
        ({"expected": "at most 1"}, "keep is too large; expected at most 1"),
        ({"hint": "Give less."}, "keep is too large. Give less."),
        ({"got": 2, "expected": "at most 1", "hint": "Give less"},
         "keep is too large; got 2; expected at most 1. Give less"),
        ({"problems": ["a: 2", "b: 3"]}, "keep is too large\n  - a: 2\n  - b: 3"),
        ({"got": 2, "problems": ["a: 2"], "hint": "Give less"}, "keep is too large; got 2\n  - a: 2\nGive less"),
        ({"got": 0, "expected": "", "hint": ""}, "keep is too large; got 0; expected "),
    ],
)  # fmt: skip
def test_a_message_is_what_got_expected_problems_and_hint_in_this_order(parts, message):
    error = ZooError("keep is too large", **parts)
    assert str(error) == message and error.args == (message,)
    assert (error.what, error.got, error.expected, error.hint) == (
        "keep is too large", parts.get("got"), parts.get("expected"), parts.get("hint"),
    )  # fmt: skip
    assert error.problems == tuple(parts.get("problems", ()))


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_a_zoo_error_with_a_docstring_and_its_parts_by_name(error):
    assert issubclass(error, ZooError) and inspect.getdoc(error)
    raised = error("what", problems=iter(["one"]))
    assert raised.problems == ("one",) and str(raised) == "what\n  - one"
    with pytest.raises(TypeError):
        error("what", "got")


@pytest.mark.parametrize(
    ("names", "builtin"),
    [
        ("Record Option Data Plan BaseMismatch Mixture UnknownLabels NotAZoo Format", ValueError),
        ("MissingScores NotFound EmptyZoo", LookupError),
        ("ReadOnly", PermissionError),
        ("Conflict", RuntimeError),
    ],
)
def test_code_that_does_not_know_the_zoo_catches_built_in_errors(names, builtin):
    for name in names.split():
        assert issubclass(getattr(errors, f"{name}Error"), builtin)


def test_no_kind_of_error_is_left_untold_and_damage_is_no_wrong_argument():
    assert len(ALL) == 16 and not issubclass(CorruptionError, (ValueError, LookupError, OSError))


def test_an_error_goes_through_another_process_with_its_message():
    error = RecordError("task", got=1, expected=2, hint="Now", problems=("a", "b"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RecordError and str(again) == str(error) and again.problems == error.problems


def test_a_user_meets_them_at_the_first_call():
    with pytest.raises(OptionError, match="got 'x'"):
        zoo.task_wup(["dog.n.01"], ["cat.n.01"], how="x")
