import shlex
from importlib.metadata import entry_points

import pytest

from mvp.cli import main

COMMANDS = (
    "pretrain",
    "meta-train",
    "prune",
    "populate",
    "vote",
    "finetune",
    "compare",
    "contest",
    "measures",
    "demo",
    "producers",
)


def test_the_command_is_installed():
    (found,) = entry_points(group="console_scripts", name="mvp")
    assert found.load() is main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"example: mvp {command}" in text


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line.split()]
    assert stop.value.code == 0 and [w for w in listed if w in COMMANDS] == list(COMMANDS)


def test_the_examples_are_understood(capsys):
    from mvp.cli import _parser

    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        example = shlex.split(capsys.readouterr().out.split("example: mvp ")[1].replace("\\\n", " "))
        assert _parser().parse_args(example).command == command


@pytest.mark.parametrize("args", [[], ["nonsense"], ["prune"], ["vote", "z", "--dataset", "d"], ["compare", "--steps"]])
def test_wrong_arguments_are_exit_code_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2 and "usage: mvp" in capsys.readouterr().err
