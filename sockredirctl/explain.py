"""`sockredirctl explain`: why a connection or a listener is accelerated or not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from dbus_next import Variant

from sockredirctl import render
from sockredirctl.client import Client
from sockredirctl.errors import ClientError, Exit

_STATES = {
    "accelerated": "accelerated",
    "leaving": "going back to TCP",
    "tcp": "on TCP",
    "in_scope": "in scope: new connections from programs in scope are accelerated",
    "out_of_scope": "out of scope",
}


def add_arguments(command: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    command.add_argument("local", nargs="?", metavar="LOCAL", help="one end, e.g. 127.0.0.1:41522")
    command.add_argument("remote", nargs="?", metavar="REMOTE", help="the other end")
    command.add_argument("--pid", type=int, metavar="PID", help="all that this process has open")
    command.add_argument("--port", type=port, metavar="PORT", help="all with this port")


async def run(client: Client, arguments: argparse.Namespace) -> None:
    keys: dict[str, Variant]
    match arguments.local, arguments.remote, arguments.pid, arguments.port:
        case str(local), str(remote), None, None:
            keys = {"local": Variant("s", local), "remote": Variant("s", remote)}
        case None, None, int(pid), None:
            keys = {"pid": Variant("u", pid)}
        case None, None, None, int(port):
            keys = {"port": Variant("u", port)}
        case _:
            raise ClientError("explain takes LOCAL REMOTE, or --pid, or --port", Exit.USAGE)
    answers = await client.call("Explain", "a{sv}", keys)
    if arguments.json:
        print(json.dumps(answers))
    else:
        shown = map(text, render.printable(answers))
        print("\n".join(shown) if answers else "no such TCP connection or listener")


def text(answer: dict[str, Any]) -> str:
    if answer["kind"] == "listener":
        head = f"listener {answer['server']}{_owner(answer, 'server')}"
    else:
        ends = (f"{answer[s]}{_owner(answer, s)}" for s in ("client", "server"))
        head = "connection " + " -> ".join(ends)
    lines = [f"{head}: {_STATES[answer['state']]}"]
    if answer["reason"]:
        lines.append(f"  {answer['reason']}: {answer['detail']}")
    if "client_sent_bytes" in answer or "server_sent_bytes" in answer:
        sent = (
            f"{side} sent {answer[f'{side}_sent_bytes']} bytes in "
            f"{answer[f'{side}_sent_messages']} messages"
            for side in ("client", "server")
            if f"{side}_sent_bytes" in answer
        )
        lines.append("  " + ", ".join(sent))
    return "\n".join(lines)


def _owner(answer: dict[str, Any], side: str) -> str:
    pid = answer.get(f"{side}_pid")
    return f" {answer[f'{side}_comm']}[{pid}]" if pid else ""
