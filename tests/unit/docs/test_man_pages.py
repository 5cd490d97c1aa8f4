"""The synopsis of each command's page has the options that the parser has, and no others."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import sockredird.__main__
from sockredirctl.__main__ import _parser
from support.commands import commands

MAN = Path(__file__).parents[3] / "man"
QUESTIONS = {
    "sockredirctl.8": (
        "Is my traffic accelerated",
        "Leave one service out",
        "What is lost",
        "Containers",
        "Remove it for good",
        "Something is odd",
    ),
    "sockredird.8": ("foreground", "check\\-config", "for good"),
    "sockredird.toml.5": ("only_ports", "exclude_units", 'addresses = "any"'),
    "org.sockredir.5": ("Enable", "Stats", "EnableWith"),
}


def section(page: str, name: str) -> str:
    (text,) = re.findall(
        rf"^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)", (MAN / page).read_text(), re.MULTILINE | re.DOTALL
    )
    return str(text)


def synopses(page: str) -> list[str]:
    """One for each way to call it, without backslashes."""
    text = section(page, "SYNOPSIS").replace("\\-", "-")
    return re.split(r"^\.Nm .*\n", text, flags=re.MULTILINE)[1:]


def shown(synopsis: str) -> set[str]:
    flags = re.findall(r"\bFl (-?[\w-]+)", synopsis)
    return {f"-{flag}" for flag in flags}


def options(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    return found - {"-h", "--help"}


@pytest.mark.parametrize("command", commands())
def test_sockredirctl(command: str) -> None:
    parser = commands()[command]
    (synopsis,) = (
        text for text in synopses("sockredirctl.8") if text.startswith(f".Cm {command}\n")
    )
    assert shown(synopsis) == options(parser)
    # an option with a value is shown with one, and no other is
    for action in parser._actions:
        for option in action.option_strings:
            takes = re.search(rf"Fl {re.escape(option[1:])} (Ar|Op Ar)\b", synopsis)
            assert option in ("-h", "--help") or bool(takes) == (action.nargs != 0), option
    for action in parser._actions:
        if not action.option_strings and action.metavar is not None:
            assert str(action.metavar).lower() in synopsis


def test_every_command_has_a_synopsis() -> None:
    named = {
        match[1]
        for text in synopses("sockredirctl.8")
        if (match := re.match(r"\.Cm (\w+)\n", text))
    }
    assert named == set(commands())


def test_each_option_is_described() -> None:
    text = section("sockredirctl.8", "DESCRIPTION").replace("\\-", "-")
    described = {f"-{name}" for name in re.findall(r"^\.It .*?Fl (-[\w-]+)", text, re.MULTILINE)}
    described |= {f"-{name}" for name in re.findall(r"^\.It .*, Fl (-[\w-]+)", text, re.MULTILINE)}
    for command, parser in commands().items():
        missing = {option for option in options(parser) if option.startswith("--")} - described
        # what is explained with the command itself
        missing = {
            option for option in missing if f"Fl {option[1:]}" not in text and option != "--format"
        }
        assert not missing, (command, missing)


def test_sockredird() -> None:
    assert set.union(*map(shown, synopses("sockredird.8"))) == options(
        sockredird.__main__._parser()
    )


@pytest.mark.parametrize("page", QUESTIONS)
def test_examples_answer_the_questions(page: str) -> None:
    text = section(page, "EXAMPLES")
    for question in QUESTIONS[page]:
        assert question in text, question


def test_commands_in_the_examples_are_right() -> None:
    """Each is taken by the parser."""
    examples = section("sockredirctl.8", "EXAMPLES").replace("\\-", "-")
    lines = re.findall(r"^\.Dl [#$] sockredirctl (.*)$", examples, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        words = re.split(r" \|\|? ", line)[0].split()
        _parser().parse_args(words)


def test_exit_codes() -> None:
    from sockredirctl.errors import Exit

    described = re.findall(r"^\.It (\d)$", section("sockredirctl.8", "EXIT STATUS"), re.MULTILINE)
    assert list(map(int, described)) == [int(code) for code in Exit]
