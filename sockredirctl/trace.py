"""`sockredirctl trace`: a line for each event, until interrupted."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from typing import Any

from sockredirctl import render
from sockredirctl.client import Client


async def run(client: Client, arguments: argparse.Namespace) -> None:
    # CLOCK_MONOTONIC, which events are stamped with, as wall-clock time
    offset = time.time() - time.monotonic()

    def show(event: dict[str, Any]) -> None:
        if arguments.json:
            print(json.dumps(event), flush=True)
            return
        if event["dropped"]:
            print(f"{event['dropped']} events were dropped", file=sys.stderr)
        if event["event"] != "dropped":
            print(line(render.printable(event), offset), flush=True)

    async def begun() -> None:
        properties = await client.properties()
        # off a terminal, only if no event is to be expected
        if not arguments.json and (sys.stderr.isatty() or properties["State"] != "enabled"):
            print(_awaited(properties), file=sys.stderr, flush=True)

    await client.events(show, begun)


def _awaited(properties: dict[str, Any]) -> str:
    if properties["State"] == "enabled":
        scope = render.scope(properties["Scope"], properties["Units"])
        return f"waiting for {scope}; Ctrl-C ends this"
    return (
        f"acceleration is {properties['State']}: no new connection is seen until it is enabled; "
        "Ctrl-C ends this"
    )


def line(event: dict[str, Any], offset: float) -> str:
    at = datetime.fromtimestamp(event["time"] / 1e9 + offset)
    name = event["event"] + (f" ({event['reason']})" if event["reason"] else "")
    ends = " -> ".join(event[side] + _comm(event, side) for side in ("client", "server"))
    return f"{at:%H:%M:%S.%f} {name:<24} {ends}{_totals(event)}"


def _comm(event: dict[str, Any], side: str) -> str:
    pid = event.get(f"{side}_pid")
    return f" {event[f'{side}_comm']}[{pid}]" if pid else ""


def _totals(event: dict[str, Any]) -> str:
    if "client_sent_bytes" not in event:
        return ""
    parts = []
    for side in ("client", "server"):
        tcp = event[f"{side}_tcp_bytes"]
        by_tcp = f" + {render.bytes_(tcp)} by TCP" if tcp else ""
        carried = render.bytes_(event[f"{side}_sent_bytes"])
        parts.append(f"{side} sent {carried} in {event[f'{side}_sent_messages']}{by_tcp}")
    return ", " + ", ".join(parts)
