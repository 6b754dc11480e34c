"""Whether a command line of the documentation is one that exists."""

import re
import shlex
from importlib import import_module
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from hf_trady.cli.main import VERBS


ROOT = Path(__file__).parents[2]


def check_commands(text: str) -> None:
    """Parse every line of `text` by the program that it calls; refuse what is not known here."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            PROGRAMS[words[0]](words[1:])


def _trady(arguments: list[str]) -> None:
    assert arguments[0] in VERBS
    import_module(f"hf_trady.cli.{arguments[0]}").make_parser().parse(arguments[1:])


def _accelerate(arguments: list[str]) -> None:
    assert arguments[0] == "launch"
    launched = launch_command_parser().parse_args(arguments[1:])
    if launched.module:
        assert launched.training_script == "hf_trady"
        _trady(launched.training_script_args)
    else:
        _python([launched.training_script, *launched.training_script_args])


def _python(arguments: list[str]) -> None:
    script = (ROOT / arguments[0]).read_text()
    for option in arguments[1:]:
        assert not option.startswith("-") or f'"{option}"' in script, f"{arguments[0]} has no {option}"


def _make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        assert re.search(rf"\$\({name}\)" if is_variable else rf"(?m)^{name}:", makefile), argument


def _pip(arguments: list[str]) -> None:
    assert arguments == ["install", "."]


PROGRAMS = {"trady": _trady, "accelerate": _accelerate, "python": _python, "make": _make, "pip": _pip}
