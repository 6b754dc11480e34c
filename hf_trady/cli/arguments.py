"""The arguments of a verb: a help that fits a screen, a YAML file, and errors of one line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import shtab
import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool


class VerbParser(HfArgumentParser):
    """[`~transformers.HfArgumentParser`] of a verb.

    `--help` shows the arguments that matter most, `--help_all` every one. `--config FILE.yaml` reads arguments from a
    file; those on the command line go over them. `--json` asks for the result as JSON.

    Args:
        classes: Dataclasses of arguments.
        verb: Name of the verb.
        description: What it does; the first paragraph goes into the short help.
        main: Names of the arguments that the short help shows.
        example: A command line.
    """

    def __init__(self, classes: Sequence[type], verb: str, description: str, main: Sequence[str], example: str):
        super().__init__(classes, prog=f"trady {verb}", description=description, add_help=False)
        self.main, self.example = list(main), example
        for action in self._actions:
            if action.nargs == "+" and not action.required:
                action.nargs = "*"  # an empty list is one
        self.add_argument("-h", "--help", action="store_true", help="Show the main arguments.")
        self.add_argument("--help_all", action="store_true", help="Show every argument.")
        config = self.add_argument("--config", metavar="FILE.yaml", help="Take arguments from this file.")
        config.complete = shtab.FILE
        self.add_argument("--json", action="store_true", help="Print the result as JSON, and messages to stderr.")

    def parse(self, arguments: list[str]) -> tuple[list[Any], argparse.Namespace]:
        """An instance of each class, followed by the values of positional arguments; and all other arguments.

        Raises:
            ValueError: If `--config` names no file that can be read and holds a mapping of arguments in YAML.
            SystemExit: With code 2, if an argument is wrong, and 0 after a help.
        """
        if "--help_all" in arguments:
            self.print_help()
            self.exit()
        if "-h" in arguments or "--help" in arguments:
            self.print_short_help()
            self.exit()
        *values, others = self.parse_args_into_dataclasses(self._with_config(arguments))
        return values + [getattr(others, action.dest) for action in self._get_positional_actions()], others

    def print_short_help(self) -> None:
        """Print what the verb does, its main arguments and an example."""
        formatter = argparse.HelpFormatter(self.prog, max_help_position=32)
        positional = "".join(f" {action.metavar}" for action in self._get_positional_actions())
        formatter.add_usage(f"%(prog)s{positional} [--config FILE.yaml] [--ARGUMENT VALUE ...]", [], [], "usage: ")
        formatter.add_text(self.description.strip().split("\n\n")[0])
        formatter.start_section("main arguments")
        by_name = {action.dest: action for action in self._actions}
        formatter.add_arguments(self._get_positional_actions())
        for action in map(by_name.get, self.main):
            shown = argparse.Action([f"--{action.dest}"], action.dest, metavar=" ", help=_first_sentence(action))
            formatter.add_argument(shown)
        formatter.end_section()
        formatter.add_text(f"Example: {self.example}")
        formatter.add_text(f"'{self.prog} --help_all' lists all {len(self._actions)} arguments.")
        print(formatter.format_help(), end="")

    def _with_config(self, arguments: list[str]) -> list[str]:
        """`arguments` with those of the file that `--config` names before them: what comes later counts."""
        known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        known.add_argument("--config")
        given, rest = known.parse_known_args(arguments)
        if given.config is None:
            return rest
        return [part for item in _read(given.config) for part in self._as_arguments(*item)] + rest

    def _as_arguments(self, key: str, value: Any, word: str | None) -> list[str]:
        """How a command line gives `value`. None, for which it has no word, becomes the default of the argument."""
        action = self._option_string_actions.get(f"--{key}")
        if value is None and action is not None:
            if not any(type(None) in get_args(get_type_hints(cls).get(action.dest)) for cls in self.dataclass_types):
                raise ValueError(f"{key}: null is not allowed; leave {key} out of the file for its default")
            self.set_defaults(**{action.dest: None})
            return []
        if isinstance(value, bool) and action is not None and action.type is not string_to_bool:
            value = value if word is None else word
        if isinstance(value, dict):
            value = json.dumps(value)
        return [f"--{key}", *map(str, value if isinstance(value, list) else [value])]

    def error(self, message: str) -> None:
        """Print one line, instead of pages of usage, and exit with code 2."""
        print(f"{self.prog}: {message}; '{self.prog} --help' shows what it takes", file=sys.stderr)
        self.exit(2)


def _first_sentence(action: argparse.Action) -> str:
    sentence = (action.help or "").replace(" (default: %(default)s)", "").split(". ")[0].rstrip(".")
    default = action.default
    if action.required:
        return f"{sentence} (required)"
    if default in (None, argparse.SUPPRESS) or isinstance(default, bool):
        return sentence
    return f"{sentence} (default: {default})"


def _read(path: str) -> list[tuple[str, Any, str | None]]:
    """The arguments in a YAML file: name, value and, where it is one word, this: YAML takes `off` and `no` for
    booleans, which only an argument knows."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"can't read config='{path}' ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config='{path}' is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"config='{path}' must hold a mapping of arguments, such as 'memory_budget: 64MiB'")
    words = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    return [(key, value, words.get(key)) for key, value in values.items()]
