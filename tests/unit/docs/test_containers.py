"""The client takes the commands of docs/containers.md, which guests type: documented.py there."""

from __future__ import annotations

import re

from sockredirctl.__main__ import _parser
from support.checkout import REPOSITORY


def test_commands() -> None:
    text = (REPOSITORY / "docs" / "containers.md").read_text()
    commands = re.findall(r"^    # sockredirctl (.*)$", text, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        _parser().parse_args(command.split())
