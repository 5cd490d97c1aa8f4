"""Every command and option is typed in a virtual machine, where the package is installed."""

from __future__ import annotations

import re
from collections import defaultdict

from support.checkout import REPOSITORY
from support.commands import commands, long_options


def typed() -> dict[str, set[str]]:
    """The options with which each command is typed in tests/vm/guest."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (REPOSITORY / "tests" / "vm" / "guest").rglob("*.py"):
        # what is written as several strings, one below the other, is one command
        text = re.sub(r'"\n\s*f?"', "", path.read_text())
        for command, rest in re.findall(r"sockredirctl ([a-z]+)([^\n|&>]*)", text):
            found[command].update(re.findall(r"--[a-z-]+", rest))
    return found


def test_what_is_typed_is_found() -> None:
    assert {"--unit", "--exclude-port"} <= typed()["enable"]
    assert "--no-such-option" not in typed()["enable"]


def test_every_command_and_option_is_typed() -> None:
    found = typed()
    missing = {
        f"{name} {option}"
        for name, parser in commands().items()
        for option in {"", *long_options(parser)} - found[name] - {"--help"}
        if option or name not in found
    }
    assert missing == set()
