"""Errors are in words of the subject: every option and every key, fed with what is wrong.

No pattern, type name or errno of a library reaches whoever typed a port wrong.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sockredirctl.__main__
from sockredird import config
from sockredird.errors import InvalidConfig

FORBIDDEN = (
    # pydantic
    *("regex", "pattern", "ensure this", "value is not", "Input should", "valid integer"),
    *("type_error", "value_error", "unexpected value", "str type", "not permitted", "none is"),
    *("constrained", "validation error", "extra fields", "__root__", "permitted:"),
    # Python
    *("Traceback", "Errno", "invalid literal", "could not convert", "codec", "NoneType", "<class"),
    *("object at 0x", "set_int_max_str_digits", "recursion", "Error:", "utf-8'", "_value"),
    # argparse names a converter by its function
    *("invalid _", "invalid port", "invalid ports", "invalid seconds", "invalid names"),
    "invalid count",
)
WRONG_IN_A_FILE = (
    *('""', '"http"', '"80"', "80", "-1", "0", "1.5", "nan", "inf", "true", "[]", "{}", "[[]]"),
    *('["x"]', '["a b"]', '[""]', "[0]", "[65536]", "[1.5]", "[true]", '["80"]', "[80, 'x']"),
    *(
        '"relative/path"',
        '"/"',
        '"127.0.0.1"',
        '"0.0.0.0:80"',
        "99999999999999999999",
        "1979-05-27",
    ),
    *('["/"]', '["system.slice"]', '["/a/.."]', '["redis.timer"]', "{a = 1}", "'''\n\nx'''"),
)
NOT_TOML = (
    *("[scope", "a", "a = ", "= 1", "[scope]\nunits = [", "a = '\n'", "[a]\n[a]", "a = 1\na = 2"),
    *("a = " + "1" * 5000, "a = " + "[" * 5000, "\udcff", "a = 1_", 'a = "\\q"', "a = 2020-13-01"),
)
WRONG_ON_THE_COMMAND_LINE = (
    *("", "x", "-1", "0", "65536", "1.5", "http,", ",", "80,x", "nan", "inf", "1e9", "99999999999"),
    *("\udcff", "²", "6379,,5432", " "),
)
KEYS = [
    f"{table}.{key}" for table, model in config._TABLES.items() for key in model.__annotations__
]


def fragments(text: str) -> set[str]:
    return {fragment for fragment in FORBIDDEN if fragment in text}


def refusal(path: Path, text: str) -> str:
    """What is said about a file; empty if it is valid."""
    path.write_bytes(text.encode(errors="surrogateescape"))
    try:
        config.load(path, required=True)
    except InvalidConfig as error:
        return str(error)
    return ""


def test_every_key_has_words_of_its_own() -> None:
    assert set(KEYS) == set(config.EXPECTED)


@pytest.mark.parametrize("key", KEYS)
def test_keys(tmp_path: Path, key: str) -> None:
    table, _, name = key.partition(".")
    refused = 0
    for value in WRONG_IN_A_FILE:
        said = refusal(tmp_path / "a.toml", f"# a comment\n[{table}]\n\n{name} = {value}\n")
        if said:
            refused += 1
            assert said.startswith(f"{tmp_path}/a.toml: line 4: {key}: "), said
            assert not fragments(said), said
            assert len(said.splitlines()) == 1
    assert refused > len(WRONG_IN_A_FILE) / 2


@pytest.mark.parametrize("text", NOT_TOML)
def test_what_is_no_toml(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path / "a.toml", text)
    assert said.startswith(f"{tmp_path}/a.toml: ")
    assert not fragments(said), said
    assert len(said) < 200


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[scope]\nport = 1\n", 2, "scope.port: no such key; did you mean exclude_ports or "),
        ("\n\n[scopes]\n", 3, "scopes: no such table"),
        ("scope = 1\n", 1, "scope: must be a table"),
        ("scope = {units = 1}\n", 1, "scope.units: must be"),
        ("scope.units = 1\n", 1, "scope.units: must be"),
        ("[scope]\nexclude_ports = [\n 1,\n 0,\n]\n", 2, "exclude_ports: must be"),
        ("[limits]\n[limits.window_bytes]\n", 2, "limits.window_bytes: must be"),
        ('[ "scope" ]\n"units"=1\n', 2, "scope.units: must be"),
        ("[scope]\nunits = [}\n", 2, "not valid TOML"),
    ],
)
def test_the_line_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    said = refusal(tmp_path / "a.toml", text)
    assert f"{tmp_path}/a.toml: " in said
    assert re.search(rf"(at )?line {line}\b", said), said
    assert words in said


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path / "a.toml", "[scope]\nunits = 1\n[limits]\nwindow_bytes = 1\n")
    assert "line 2: scope.units: " in said
    assert "line 4: limits.window_bytes: " in said


@pytest.mark.parametrize("name", [key.partition(".")[2] for key in KEYS if "scope." in key])
@pytest.mark.parametrize("prefix", ["", "add_"])
def test_keys_over_the_bus(prefix: str, name: str) -> None:
    refused = 0
    values: tuple[Any, ...] = ("", "x y", 0, 65536, 1.5, True, [0], [""], [1.5], [True], {}, ["/"])
    for value in values:
        try:
            config.override_scope(config.Scope(), {prefix + name: value})
        except InvalidConfig as error:
            refused += 1
            assert f"scope.{name}" in str(error)
            assert not fragments(str(error)), error
    assert refused > len(values) / 2


def options() -> Iterator[tuple[str, str]]:
    """Each command with each of its options that takes a value."""
    (commands,) = (
        action
        for action in sockredirctl.__main__._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if action.option_strings and action.nargs is None:
                yield command, action.option_strings[-1]


@pytest.mark.parametrize(("command", "option"), options())
def test_options(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in WRONG_ON_THE_COMMAND_LINE:
        try:
            sockredirctl.__main__._parser().parse_args([command, f"{option}={value}"])
        except SystemExit as error:
            assert error.code == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert option in said
            assert not fragments(said), said


def test_the_oracle_would_notice() -> None:
    """The words that pydantic itself has for it."""
    with pytest.raises(ValueError, match="scope") as caught:
        config.Config(**{"scope": {"units": ["a b"], "exclude_ports": ["80"]}})
    assert fragments(str(caught.value))
