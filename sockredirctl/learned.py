"""`sockredirctl learned`: shows, or removes, listeners whose connections are left on TCP."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

from sockredirctl import render, table
from sockredirctl.client import Client
from sockredirctl.table import Column

_COLUMNS = (
    Column("LISTENER", 0),
    Column("SINCE", 3),
    Column("CGROUP", 4, least=12),
    Column("WHY", 0, least=30),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    table.add_arguments(command)
    command.add_argument(
        "--forget", metavar="ID", help="accelerate new connections to this listener again"
    )
    command.add_argument("--all", action="store_true", help="the same for all listeners")


def mistake(arguments: argparse.Namespace) -> str:
    """What is wrong with this combination of arguments; empty if nothing is."""
    if (arguments.forget is not None and arguments.all) or arguments.forget == "":
        return "give either --forget ID or --all"
    return ""


async def run(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.forget is None and not arguments.all:
        entries = await client.call("Learned")
        if arguments.json:
            print(json.dumps(entries))
        else:
            table.show(_text(render.printable(entries), arguments), pager=not arguments.no_pager)
        return
    await client.call("Forget", "s", arguments.forget or "")


def _text(entries: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    if not entries:
        return "no listener is learned"
    return table.text(_COLUMNS, [_row(entry) for entry in entries], table.width(arguments))


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    since = datetime.fromtimestamp(entry["since"] / 1e6)
    who = f"{entry['comm']}[{entry['pid']}] " if entry["pid"] else ""
    return (
        entry["id"],
        f"{since:%Y-%m-%d %H:%M:%S}",
        table.short_ids(entry["cgroup"]) or "-",
        who + entry["detail"],
    )
