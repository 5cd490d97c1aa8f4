"""org.sockredir(5) describes what introspection shows: every member, its types, every error."""

from __future__ import annotations

import re

from bus.bus.test_interface import introspect
from bus.bus.test_polkit import FREE
from sockredird import errors
from support.checkout import REPOSITORY
from support.daemon.client import Client

PAGE = (REPOSITORY / "man" / "org.sockredir.5").read_text()
# No caller gets these over the bus.
WITHOUT_A_BUS = (errors.BusUnavailable, errors.AlreadyRunning)


def section(name: str) -> str:
    (text,) = re.findall(rf"^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def types(arguments: str) -> str:
    """'u limit, a{sv} query' -> 'ua{sv}'"""
    return "".join(argument.split()[0] for argument in arguments.split(", ") if argument)


def test_methods(client: Client) -> None:
    described = {
        name: (types(arguments), result)
        for name, arguments, result in re.findall(
            r'^\.It Li "(\w+)\((.*)\)(?: -> (.*))?"$', section("METHODS"), re.MULTILINE
        )
    }
    introspected = {
        method.get("name"): tuple(
            "".join(str(arg.get("type")) for arg in method.iterfind(f"arg[@direction='{way}']"))
            for way in ("in", "out")
        )
        for method in introspect(client).iterfind("method")
    }
    assert described == introspected


def test_who_may_call() -> None:
    items = re.split(r'^\.It Li "(\w+)\(.*$', section("METHODS"), flags=re.MULTILINE)[1:]
    for name, text in zip(items[::2], items[1::2], strict=True):
        assert ("Privileged." in text) == (name not in FREE), name


def test_properties_and_signals(client: Client) -> None:
    for kind, heading in (("property", "PROPERTIES"), ("signal", "SIGNALS")):
        described = re.findall(r'^\.It Li "(\w+)[ (]([^) "]+)', section(heading), re.MULTILINE)
        introspected = [
            (member.get("name"), member.get("type") or member.find("arg").get("type"))  # type: ignore[union-attr]
            for member in introspect(client).iterfind(kind)
        ]
        assert sorted(described) == sorted(introspected)


def test_errors() -> None:
    described = re.findall(r"^\.It Li org\.sockredir\.Error\.(\w+)$", section("ERRORS"), re.M)
    # Those of errors.py: kinds that other modules keep to themselves never reach the bus.
    kinds = {
        kind
        for kind in errors.SockredirError.__subclasses__()
        if kind.__module__ == errors.__name__ and kind not in WITHOUT_A_BUS
    }
    assert sorted(described) == sorted(kind.name for kind in kinds)
