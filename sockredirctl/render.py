"""Text for people. JSON output does not come through here."""

from __future__ import annotations

import textwrap
from datetime import datetime
from itertools import islice
from typing import Any

REASONS_SHOWN = 5  # of each kind; stats has all
UNITS_SHOWN = 2  # for each cause that keeps live connections on TCP; status --json has all
_BETWEEN = {
    "loopback": "loopback connections",
    "host": "connections between addresses of this host",
    "any": "connections on this host, of any address",
}


def printable(value: Any) -> Any:
    r"""`value` with the UTF-8 bytes of what str.isprintable() refuses as \xNN, in all its strings.

    For whatever is shown to people: names of processes, units and paths are chosen by others, who
    could otherwise draw on the terminal, or add lines to a table. JSON stays exact.
    """
    if isinstance(value, str):
        return value if value.isprintable() else "".join(map(_printable, value))
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable(item) for item in value]
    return value


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    encoded = character.encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)


def scope(scope: dict[str, Any], units: dict[str, str]) -> str:
    """A scope in words, e.g. 'loopback connections in cgroup /, except port 22'."""
    words = _BETWEEN[scope["addresses"]]
    if scope["units"]:
        names = (
            name if units.get(name, "?") else f"{name} (not running)" for name in scope["units"]
        )
        words += " in " + ", ".join(names)
    else:
        words += f" in cgroup {scope['cgroup']}"
    if scope["exclude_units"]:
        words += ", except " + ", ".join(scope["exclude_units"])
    if scope["exclude_cgroups"]:
        words += ", except cgroup " + ", ".join(scope["exclude_cgroups"])
    if scope["only_ports"]:
        words += f", {_ports(scope['only_ports'])} only"
    if scope["exclude_ports"]:
        words += f", except {_ports(scope['exclude_ports'])}"
    return words


def _ports(numbers: list[int]) -> str:
    return f"port{'s'[: len(numbers) != 1]} {', '.join(map(str, numbers))}"


def sources(sources: dict[str, str]) -> str:
    """Which keys of a scope come from options, and which from the file; empty if all are defaults.

    E.g. 'From options: units; from the file: cgroup; from the file and options: exclude_ports'.
    """
    words = {
        "option": "options",
        "file": "the file",
        "file+option": "the file and options",
        "default+option": "the defaults and options",
    }
    parts = []
    for source, name in words.items():
        if keys := [key for key, value in sources.items() if value == source]:
            parts.append(f"from {name}: {', '.join(keys)}")
    return "; ".join(parts).capitalize() if parts else ""


def bytes_(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Two units at the most, e.g. '3h 12m'."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 60:
        return f"{minutes}m {seconds % 60:.0f}s"
    return f"{hours}h {minutes % 60}m" if hours < 48 else f"{days}d {hours % 24}h"


def share(stats: dict[str, int]) -> str:
    """E.g. '98.5 % of the connections in scope'."""
    accelerated, declined = stats["accelerated_connections"], stats["declined_connections"]
    if not accelerated + declined:
        return "no connection in scope yet"
    return f"{100 * accelerated / (accelerated + declined):.1f} % of the connections in scope"


def room(stats: dict[str, int]) -> str:
    """How full the sockhash is, if there is one."""
    entries, capacity = stats["map_entries"], stats["map_capacity"]
    return f" ({entries:,} of {capacity:,} sockhash entries)" if capacity else ""


def kernel(summary: dict[str, Any]) -> str:
    """How the kernel passed its checks, e.g. '6.12.75, 13 checks pass, 1 warn, 2 notes'."""
    noted = summary["noted"]
    counts = [f"{summary['passed']} checks pass"]
    if warned := summary["warned"] - noted:
        counts.append(f"{warned} warn")
    if noted:
        counts.append("1 note" if noted == 1 else f"{noted} notes")
    if summary["failed"]:
        counts.append(f"{summary['failed']} fail")
    if warned or summary["failed"]:
        counts[-1] += " (sockredirctl check)"
    if not summary["checked"]:
        counts = ["not tried yet (sockredirctl check)"]
    return ", ".join([summary["release"], *counts])


def _reasons(kind: str, stats: dict[str, int]) -> str:
    """How many connections of a kind there were, and their most frequent causes."""
    counts = {
        name.partition("_")[2]: value
        for name, value in sorted(stats.items(), key=lambda item: -item[1])
        if name.startswith(f"{kind}_") and value and name != f"{kind}_connections"
    }
    parts = [f"{reason} {value:,}" for reason, value in islice(counts.items(), REASONS_SHOWN)]
    if rest := sum(islice(counts.values(), REASONS_SHOWN, None)):
        parts.append(f"others {rest:,}")
    detail = f" ({', '.join(parts)})" if parts else ""
    return f"{kind.capitalize():>12}: {stats[f'{kind}_connections']:,}{detail}"


def _kept(from_where: dict[str, str]) -> str:
    """Where the scope comes from, and how long options last."""
    words = sources(from_where)
    if any("option" in source for source in from_where.values()):
        words += " (options last until disable)"
    return words


def not_joined(left: list[dict[str, Any]]) -> list[str]:
    """A line for each cause that keeps live connections on TCP, with their units."""
    units: dict[str, list[str]] = {}
    for one in left:
        who = one["unit"] or "no unit"
        units.setdefault(one["detail"], []).append(f"{one['connections']:,} of {who}")
    parts = []
    for detail, found in units.items():
        if rest := found[UNITS_SHOWN:]:
            found = [*found[:UNITS_SHOWN], f"and {len(rest)} more unit{'s'[: len(rest) != 1]}"]
        parts.append(f"  Not joined: {', '.join(found)}: {detail}")
    return parts


def status(properties: dict[str, Any], stats: dict[str, int], now: float, width: int) -> str:
    """Lines of at most `width` columns, except for longer words."""
    since = datetime.fromtimestamp(properties["Since"] / 1e6).astimezone()
    ago = duration(max(now - since.timestamp(), 0))
    from_where = _kept(properties["Sources"])
    lines = [
        f"sockredird {properties['Version']} - same-host TCP acceleration",
        f"       State: {properties['State']} since {since:%a %Y-%m-%d %H:%M:%S %Z}; {ago} ago",
        *([f"     Problem: {properties['Problem']}"] if properties["Problem"] else []),
        f"       Scope: {scope(properties['Scope'], properties['Units'])}",
        *([f"              {from_where}"] if from_where else []),
        f"      Kernel: {kernel(properties['Kernel'])}",
        f" Connections: {stats['active_connections']:,} accelerated now, "
        f"{stats['accelerated_connections']:,} in all, {stats['joined_connections']:,} joined"
        f"{room(stats)}",
        f"       Share: {share(stats)}",
        f"     Traffic: {stats['redirected_messages']:,} messages, "
        f"{bytes_(stats['redirected_bytes'])} redirected",
    ]
    lines += [_reasons(kind, stats) for kind in ("declined", "retired")]
    lines += not_joined(properties["LiveConnections"]["left"])
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(wrapper.fill, lines))


def stats(values: dict[str, int]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in sorted(values.items()))
