"""The argument parser of every command: wrong use is answered with one sentence."""

import argparse
import difflib
import sys

from megatron_music.cli.console import BAD_INPUT
from megatron_music.cli.dataset_options import NEGATIVE_NUMBER_OR_RANGE
from megatron_music.config.log import shown


class _Formatter(argparse.HelpFormatter):
    """Help texts that end with the default, where there is one and the text does not give it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_plain = (
            isinstance(action.default, (int, float, str))
            and not isinstance(action.default, bool)
            and action.default != ""
        )
        if (
            action.option_strings
            and is_plain
            and "default" not in (action.help or "")
            and action.default != argparse.SUPPRESS
        ):
            return f"{action.help} (default %(default)s)"
        return action.help


class Parser(argparse.ArgumentParser):
    """argparse that answers wrong use with one sentence, and suggests the nearest command."""

    def __init__(self, *arguments, **options):
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*arguments, **options)
        self._negative_number_matcher = NEGATIVE_NUMBER_OR_RANGE

    def _check_value(self, action: argparse.Action, value) -> None:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in action.choices or ()], 1)
        if near and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; did you mean {near[0]}?")
        super()._check_value(action, value)

    def _print_message(self, message: str, file=None) -> None:
        """As argparse does, which hides that standard output cannot be written to."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str):
        self.exit(BAD_INPUT, f"{self.prog}: {shown(message)}; run `{self.prog} --help`\n")
