"""The commands of sockredirctl, as its parser knows them."""

from __future__ import annotations

import argparse

from sockredirctl.__main__ import _parser


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def long_options(parser: argparse.ArgumentParser) -> set[str]:
    """With --help."""
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
