"""`sockredirctl enable` and `reload`: which scope is asked for, and which one is in force then."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from dbus_next import Variant

from sockredirctl import render, values

_LISTS = (
    # option, key of EnableWith, signature; `add_` keeps what the file excludes
    ("unit", "units", "as"),
    ("port", "only_ports", "au"),
    ("exclude_port", "add_exclude_ports", "au"),
    ("exclude_unit", "add_exclude_units", "as"),
    ("exclude_cgroup", "add_exclude_cgroups", "as"),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--configured",
        action="store_true",
        help="drop options given earlier, and use the scope of the configuration file",
    )
    command.add_argument(
        "--no-block",
        action="store_true",
        help="return at once: do not say how many established connections were joined",
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--unit",
        type=values.names,
        action="extend",
        metavar="UNIT",
        help="accelerate within and between these systemd units; may be repeated, or a "
        "comma-separated list",
    )
    where.add_argument(
        "--cgroup",
        metavar="PATH",
        help="accelerate within this cgroup (as in /proc/PID/cgroup)",
    )
    command.add_argument(
        "--wait",
        action="store_true",
        help="accept units that are not running yet, or do not exist yet",
    )
    command.add_argument(
        "--exclude-unit",
        type=values.names,
        action="extend",
        metavar="UNIT",
        help="leave this systemd unit on TCP, besides those that the file excludes; may be "
        "repeated, or a comma-separated list",
    )
    command.add_argument(
        "--exclude-cgroup",
        action="append",
        metavar="PATH",
        help="leave this cgroup and those below it on TCP, besides those that the file excludes; "
        "may be repeated",
    )
    command.add_argument(
        "--addresses",
        choices=["loopback", "host", "any"],
        help="accelerate between loopback addresses, addresses of this host, or any addresses "
        "(NAT, containers)",
    )
    command.add_argument(
        "--port",
        type=values.ports,
        action="extend",
        metavar="PORT",
        help="accelerate connections to this listening port only, a number or a service; "
        "may be repeated, or a comma-separated list",
    )
    command.add_argument(
        "--exclude-port",
        type=values.ports,
        action="extend",
        metavar="PORT",
        help="leave connections to this listening port on TCP, besides those that the file "
        "excludes; may be repeated, or a comma-separated list",
    )


def asked(arguments: argparse.Namespace) -> dict[str, Variant] | None:
    """The argument of EnableWith(); None for Enable(), which keeps the options given before.

    If all options exclude something, the daemon adds them to those given before.
    """
    scope: dict[str, Variant] = {}
    if arguments.cgroup is not None:
        # units in the file would take precedence
        scope |= {"cgroup": Variant("s", arguments.cgroup), "units": Variant("as", [])}
    if arguments.addresses is not None:
        scope["addresses"] = Variant("s", arguments.addresses)
    for option, key, signature in _LISTS:
        if given := getattr(arguments, option):
            scope[key] = Variant(signature, list(dict.fromkeys(given)))
    if not scope and not arguments.configured:
        return None
    if arguments.configured:
        scope["configured"] = Variant("b", True)
    if arguments.wait:
        scope["wait"] = Variant("b", True)
    return scope


def chosen(asked: dict[str, Variant] | None) -> Iterator[tuple[str, Any]]:
    """Keys that have to be in force as they were asked for; names of units may be aliases."""
    for key, value in (asked or {}).items():
        if key in ("cgroup", "addresses", "only_ports"):
            yield key, render.printable(value.value)


def summary(properties: dict[str, Any], left: int, stays: bool) -> str:
    """The scope that is in force, where its keys come from, and how many connections it cost.

    `left` connections went back to TCP because of the change. `stays`: no options were given now,
    so those given before are still in force.
    """
    lines = [f"Accelerated: {render.scope(properties['Scope'], properties['Units'])}."]
    if sources := render.sources(properties["Sources"]):
        kept = " (sockredirctl enable --configured drops the options)" if stays else ""
        lines.append(f"{sources}{kept}.")
    if left:
        connections = "connection has" if left == 1 else "connections have"
        lines.append(
            f"{left:,} {connections} gone back to TCP for this change; what is still in scope "
            "joins again when it is used."
        )
    return "\n".join(lines)


def joined(found: dict[str, Any]) -> str:
    """What became of connections that were established before; `found`: LiveConnections."""
    count, left = found["joined"], sum(one["connections"] for one in found["left"])
    if count:
        connections = "connection has" if count == 1 else "connections have"
        text = f"{count:,} established {connections} joined"
    else:
        text = "No established connection has joined yet"
    text += "; idle ones follow when they are used."
    if left:
        text += f"\n{left:,} cannot: sockredirctl status says why."
    return text
