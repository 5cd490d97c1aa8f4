"""`sockredirctl explain`: why a connection or a listener is accelerated or not."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dbus_next import Variant

from sockredirctl import list as list_
from sockredirctl import nothing, render, table
from sockredirctl.client import Client
from sockredirctl.errors import ClientError, Exit

_STATES = {
    "accelerated": "accelerated",
    "leaving": "going back to TCP",
    "tcp": "on TCP",
    "in_scope": "in scope: new connections from programs in scope are accelerated",
    "out_of_scope": "out of scope",
}
_COLOURS = {"accelerated": "green", "in_scope": "green"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    table.add_arguments(command)
    command.add_argument("local", nargs="?", metavar="LOCAL", help="one end, e.g. 127.0.0.1:41522")
    command.add_argument("remote", nargs="?", metavar="REMOTE", help="the other end")
    list_.add_filters(command)


def mistake(arguments: argparse.Namespace) -> str:
    """What is wrong with this combination of arguments; empty if nothing is."""
    ends = [end for end in (arguments.local, arguments.remote) if end is not None]
    given = [x for x in (arguments.pid, arguments.port, arguments.unit) if x is not None]
    if len(ends) in (0, 2) and bool(ends) + len(given) == 1:
        return ""
    return "give the two addresses of a connection, or --pid, or --port, or --unit"


async def run(client: Client, arguments: argparse.Namespace) -> None:
    """Raises ClientError if there is no such connection or listener."""
    ends = [end for end in (arguments.local, arguments.remote) if end is not None]
    keys = list_.filters(arguments)
    if ends:
        keys = {"local": Variant("s", ends[0]), "remote": Variant("s", ends[1])}
    if keys.keys() & {"pid", "pids"} and (await client.properties())["State"] == "disabled":
        raise ClientError(
            "acceleration is disabled, and without it the sockets of a process are not known: "
            "explain a connection, a port or a unit",
            Exit.NOTHING,
        )
    answers = sorted(await client.call("Explain", "a{sv}", keys), key=_order)
    if arguments.json:
        print(json.dumps(answers))
    elif answers:
        whole = arguments.output == "wide"
        table.show(
            "\n".join(text(a, whole) for a in render.printable(answers)),
            pager=not arguments.no_pager,
        )
    if not answers:
        raise await nothing.why(client, keys, "no such TCP connection or listener")


def _order(answer: dict[str, Any]) -> tuple[Any, ...]:
    """Listeners first, then by the server's port and address, and the client's."""

    def place(side: str) -> tuple[int, str]:
        host, _, port = answer.get(side, ":0").rpartition(":")
        return int(port), host

    return answer["kind"] != "listener", place("server"), place("client")


def text(answer: dict[str, Any], whole: bool = False) -> str:
    """Lines with the state, the reason and what was sent; with the cgroups, too, if `whole`."""
    if answer["kind"] == "listener":
        head = f"listener {answer['server']}{_owner(answer, 'server')}"
    else:
        ends = (f"{answer[s]}{_owner(answer, s)}" for s in ("client", "server"))
        head = "connection " + " -> ".join(ends)
    state = answer["state"]
    lines = [f"{head}: {table.coloured(_STATES[state], _COLOURS.get(state, 'yellow'))}"]
    if answer["reason"]:
        lines.append(f"  {answer['reason']}: {answer['detail']}")
    sent = [
        f"{side} sent {table.size(answer[f'{side}_sent_bytes'])} in "
        f"{answer[f'{side}_sent_messages']:,} messages"
        for side in ("client", "server")
        if f"{side}_sent_bytes" in answer
    ]
    if sent:
        lines.append("  " + ", ".join(sent))
    if whole:
        lines += [
            f"  {side} in cgroup {answer[f'{side}_cgroup']}"
            for side in ("client", "server")
            if answer.get(f"{side}_cgroup")
        ]
    return "\n".join(lines)


def _owner(answer: dict[str, Any], side: str) -> str:
    pid = answer.get(f"{side}_pid")
    return f" {answer[f'{side}_comm']}[{pid}]" if pid else ""
