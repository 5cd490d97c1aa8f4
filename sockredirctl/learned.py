"""`sockredirctl learned`: listeners whose connections are left on TCP, and forgetting them."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

from sockredirctl import render
from sockredirctl.client import Client
from sockredirctl.errors import ClientError, Exit


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--forget", metavar="ID", help="let its connections be accelerated again, from the next on"
    )
    command.add_argument("--all", action="store_true", help="with no ID: forget all of them")


async def run(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.forget is None and not arguments.all:
        entries = await client.call("Learned")
        if arguments.json:
            print(json.dumps(entries))
        else:
            shown = map(line, render.printable(entries))
            print("\n".join(shown) if entries else "nothing is learned")
        return
    if (arguments.forget is not None and arguments.all) or arguments.forget == "":
        raise ClientError("learned takes --forget ID, or --all", Exit.USAGE)
    await client.call("Forget", "s", arguments.forget or "")


def line(entry: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(entry["since"] / 1e6)
    where = f" in {entry['cgroup']}" if entry["cgroup"] else ""
    who = f"{entry['comm']}[{entry['pid']}] " if entry["pid"] else ""
    return f"{entry['id']:<16} since {since:%Y-%m-%d %H:%M:%S}{where}: {who}{entry['detail']}"
