"""`sockredirctl enable` and `reload`: which scope is asked for, and which one is in force then."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from dbus_next import Variant

from sockredirctl import render, values

_LISTS = (
    # option, key of EnableWith, signature: what is excluded is added to what the file excludes
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
        help="drop the options given before: the scope of the configuration alone",
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
        help="accelerate within and between these systemd units; may be repeated, or a list",
    )
    where.add_argument(
        "--cgroup",
        metavar="PATH",
        help="accelerate within this cgroup (as in /proc/PID/cgroup)",
    )
    command.add_argument(
        "--wait",
        action="store_true",
        help="accept units that do not run yet, or do not exist yet",
    )
    command.add_argument(
        "--exclude-unit",
        type=values.names,
        action="extend",
        metavar="UNIT",
        help="but not this systemd unit, besides those in the file; may be repeated, or a list",
    )
    command.add_argument(
        "--exclude-cgroup",
        action="append",
        metavar="PATH",
        help="but not this cgroup and those below, besides those in the file; may be repeated",
    )
    command.add_argument(
        "--addresses",
        choices=["loopback", "host", "any"],
        help="between loopback addresses, all of this host, or any (NAT, containers)",
    )
    command.add_argument(
        "--port",
        type=values.ports,
        action="extend",
        metavar="PORT",
        help="accelerate connections to this listening port only, a number or a service; "
        "may be repeated, or a list",
    )
    command.add_argument(
        "--exclude-port",
        type=values.ports,
        action="extend",
        metavar="PORT",
        help="but not to this one, besides those in the file; may be repeated, or a list",
    )


def asked(arguments: argparse.Namespace) -> dict[str, Variant] | None:
    """What EnableWith() takes; None for Enable(), which keeps what was given before.

    What excludes, with no other option, is added to what was given before.
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
    """Keys that have to be in force as they were asked for; units get their own names."""
    for key, value in (asked or {}).items():
        if key in ("cgroup", "addresses", "only_ports"):
            yield key, render.printable(value.value)


def told(properties: dict[str, Any], left: int, stays: bool) -> str:
    """The scope that is in force, from where, and what a change of it cost.

    `left`: connections that the change took out of acceleration; `stays`: whether options given
    before are among the sources, because none were given now.
    """
    lines = [f"Accelerated: {render.scope(properties['Scope'], properties['Units'])}."]
    if sources := render.sources(properties["Sources"]):
        kept = " (sockredirctl enable --configured drops the options)" if stays else ""
        lines.append(f"{sources}{kept}.")
    if left:
        connections = "connection has" if left == 1 else "connections have"
        lines.append(f"{left:,} {connections} left acceleration by this change.")
    return "\n".join(lines)


def joined(found: dict[str, Any]) -> str:
    """What became of connections that were established before; `found`: LiveConnections."""
    count, left = found["joined"], sum(one["connections"] for one in found["left"])
    connections = "connection" if count == 1 else "connections"
    text = (
        f"{count:,} {connections} established before joined; idle ones follow when they are used."
    )
    if left:
        text += f"\n{left:,} cannot: sockredirctl status says why."
    return text
