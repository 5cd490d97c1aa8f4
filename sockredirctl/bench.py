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
BUSIEST = 100  # connections that the estimate is made of
ONE_CPU = "round trip, {}, one CPU"  # a work whose time is processor time
SIZES = {"64 B": 64, "8 KiB": 8192}  # bytes


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
        rows: list[Row] = await client.call("Bench", "q", arguments.port)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(text(rows))
    query = {"sort": Variant("s", "message_rate")}
    print(estimate(rows, await client.call("ConnectionsWith", "ua{sv}", BUSIEST, query)))


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


def estimate(rows: list[Row], connections: list[Row]) -> str:
    """What the busiest connections save at this moment, by the times of the nearest size."""
    rates = [
        (c.get(f"{side}_messages_per_second", 0), c.get(f"{side}_bytes_per_second", 0))
        for c in connections
        for side in ("client", "server")
    ]
    messages = sum(count for count, _ in rates)
    trips = {row["work"]: row["plain"] - row["accelerated"] for row in rows}
    saved = {size: trips.get(ONE_CPU.format(name)) for name, size in SIZES.items()}
    if not messages or None in saved.values():
        return (
            "For an estimate of what the programs here gain, enable acceleration, and run this "
            "again while they work."
        )
    microseconds = 0.0
    for count, size in rates:
        nearest = min(SIZES.values(), key=lambda known: abs(known - size / count)) if count else 0
        # a round trip is two messages
        microseconds += count * (saved.get(nearest) or 0.0) / 2
    return (
        f"An estimate for the {len(connections)} busiest accelerated connections: at "
        f"{messages:,} messages per second, they save {microseconds / 1e6:.2f} s of processor "
        "time per second."
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
