"""Text for people. JSON output does not come through here."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def scope(scope: dict[str, Any]) -> str:
    """A scope in words, e.g. 'loopback connections in cgroup /, but port 22'."""
    words = f"{scope['addresses']} connections in cgroup {scope['cgroup']}"
    if scope["only_ports"]:
        words += ", port " + ", ".join(map(str, scope["only_ports"])) + " only"
    if scope["exclude_ports"]:
        words += ", except port " + ", ".join(map(str, scope["exclude_ports"]))
    return words


def bytes_(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def status(properties: dict[str, Any], stats: dict[str, int]) -> str:
    since = datetime.fromtimestamp(properties["Since"] / 1e6).astimezone()
    lines = [
        f"sockredird {properties['Version']} - same-host TCP acceleration",
        f"       State: {properties['State']} since {since:%a %Y-%m-%d %H:%M:%S %Z}",
        *([f"     Problem: {properties['Problem']}"] if properties["Problem"] else []),
        f"       Scope: {scope(properties['Scope'])}",
        f" Connections: {stats['active_connections']} accelerated now, "
        f"{stats['accelerated_connections']} in all "
        f"({stats['map_entries']} of {stats['map_capacity']} sockhash entries)",
        f"     Traffic: {stats['redirected_messages']} messages, "
        f"{bytes_(stats['redirected_bytes'])} redirected",
    ]
    for kind in ("declined", "retired"):
        total = stats[f"{kind}_connections"]
        reasons = [
            f"{name.partition('_')[2]} {value}"
            for name, value in sorted(stats.items(), key=lambda item: -item[1])
            if name.startswith(f"{kind}_") and value and name != f"{kind}_connections"
        ]
        detail = f" ({', '.join(reasons)})" if reasons else ""
        lines.append(f"{kind.capitalize():>12}: {total}{detail}")
    return "\n".join(lines)


def stats(values: dict[str, int]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in sorted(values.items()))


def event(event: dict[str, Any]) -> str:
    seconds, nanoseconds = divmod(event["time"], 10**9)
    reason = f" ({event['reason']})" if event["reason"] else ""
    dropped = f"  [{event['dropped']} events dropped]" if event["dropped"] else ""
    name = event["event"] + reason
    return (
        f"{seconds}.{nanoseconds // 1000:06d} {name:<24} "
        f"{event['client']} -> {event['server']}{dropped}"
    )
