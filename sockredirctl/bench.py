"""`sockredirctl bench`: what acceleration gains on this host."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dbus_next import Variant

from sockredirctl import progress, values
from sockredirctl.client import Client

Row = dict[str, Any]
ON_PAR = 0.05  # a ratio whose median is nearer to 1 than this is no difference
LEAST_SHOWN = 0.01  # seconds of processor time per second


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--port",
        type=values.port,
        default=0,
        metavar="PORT",
        help="listen on this port for accelerated connections (default: any)",
    )


async def run(client: Client, arguments: argparse.Namespace) -> None:
    async with progress.shown("measuring round trips and streams, which takes some seconds"):
        if arguments.json:
            print(json.dumps(await client.call("Bench", "q", arguments.port)))
            return
        options = {"port": Variant("q", arguments.port)}
        result: dict[str, Any] = await client.call("BenchWith", "a{sv}", options)
    print(text(result["rows"]))
    print(estimate(result["estimate"]))


def text(rows: list[Row]) -> str:
    lines = [f"{'':<28}{'plain TCP':>16}{'accelerated':>16}   times as fast"]
    for row in rows:
        values = [f"{row[key]:.1f} {row['unit']}" for key in ("plain", "accelerated")]
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"{row['work']:<28}{values[0]:>16}{values[1]:>16}   {ratio}")
    return "\n".join([*lines, "", sentence(rows)])


def sentence(rows: list[Row]) -> str:
    """The result in a sentence; a difference counts if it is larger than the spread."""
    kinds = {
        "round trips": [row for row in rows if row["unit"] == "us"],
        "streams": [row for row in rows if row["unit"] != "us"],
    }
    words = {name: _verdict(found) for name, found in kinds.items() if found}
    parts = [f"{name} are {word}" for name, word in words.items()]
    worth = any("times as fast" in w and "slower" not in w for w in words.values())
    opening = "Worth it here" if worth else "Not worth it here"
    return f"{opening}: {', '.join(parts)}. Measured in Python: faster programs gain more."


def estimate(found: dict[str, Row]) -> str:
    """What this host's own connections save, and what more of them would, in sentences."""
    lines = []
    accelerated, plain = found.get("accelerated"), found.get("tcp")
    if accelerated and accelerated["connections"]:
        lines.append(
            f"This host's accelerated connections: {_exchange(accelerated)}; acceleration saves "
            f"{_saved(accelerated)} (an estimate)."
        )
    if plain is None:
        lines.append("There is no estimate of what this host's connections on TCP would save.")
    elif plain["connections"]:
        end = f", and {_large(plain)}" if plain["large_connections"] else ""
        lines.append(
            f"This host's own connections: {_exchange(plain)} by plain TCP; accelerating them "
            f"would save {_saved(plain)}{end} (an estimate)."
        )
    elif plain["large_connections"]:
        lines.append(f"This host's own connections on plain TCP: {_large(plain)} (an estimate).")
    elif not lines:
        lines.append(
            "This host's own connections: none between two local programs carried a message by "
            "plain TCP just now; run this while the services work, for an estimate of what they "
            "would save."
        )
    return "\n".join(lines)


def _exchange(found: Row) -> str:
    one = found["connections"] == 1
    return (
        f"{found['connections']:,} between local programs {'exchanges' if one else 'exchange'} "
        f"{found['messages_per_second']:,} messages of {found['message_bytes']:,} bytes per second"
    )


def _saved(found: Row) -> str:
    seconds = found["saved_cpu_seconds"]
    if seconds <= 0:
        return "no processor time"
    amount = f"about {seconds:.2f} s" if seconds >= LEAST_SHOWN else f"less than {LEAST_SHOWN} s"
    return f"{amount} of processor time per second"


def _large(found: Row) -> str:
    one = found["large_connections"] == 1
    return (
        f"{found['large_connections']:,} with messages larger than 16 KiB "
        f"{'gains' if one else 'gain'} nothing"
    )


def _verdict(rows: list[Row]) -> str:
    better = [row["ratio"] for row in rows if row["ratio"] > 1 + ON_PAR and row["low"] > 1]
    worse = [row["ratio"] for row in rows if row["ratio"] < 1 - ON_PAR and row["high"] < 1]
    if better and not worse:
        times = f"{max(better):.1f} times as fast"
        if min(better) < max(better) - ON_PAR:
            times = f"{min(better):.1f} to {times}"
        return times if len(better) == len(rows) else f"up to {max(better):.1f} times as fast"
    if worse and not better:
        return f"slower ({min(worse):.2f} times as fast)"
    if better and worse:
        return "faster or slower, depending on their size"
    return "as fast as plain TCP"
