"""sockredirctl: the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dbus_next import Variant

from sockredirctl import (
    bench,
    check,
    explain,
    learned,
    offline,
    progress,
    render,
    scope,
    trace,
    values,
)
from sockredirctl import list as list_
from sockredirctl.client import Client
from sockredirctl.errors import ClientError, Exit, NoBus, NotRunning

# The daemon joins at its second look, a second after the first.
JOIN_S, JOIN_PAUSE_S = 3.0, 0.1


async def _enable(client: Client, arguments: argparse.Namespace) -> None:
    await _start(client)
    before = await client.properties()
    asked = scope.asked(arguments)

    async def enable() -> None:
        async with progress.shown("trying this kernel, compiling and loading the programs"):
            if asked is None:
                await client.call("Enable")
            else:
                await client.call("EnableWith", "a{sv}", asked)

    properties = await _changing(client, enable, stays=asked is None, wait=not arguments.no_block)
    waiting = [unit for unit, path in properties["Units"].items() if not path]
    if waiting:
        print(
            f"not running yet; accelerated when they start: {', '.join(waiting)}", file=sys.stderr
        )
    if before["State"] == "draining":
        print("enabled; older connections are still being handed back to TCP", file=sys.stderr)
    if any(properties["Scope"][key] != value for key, value in scope.chosen(asked)):
        shown = render.scope(properties["Scope"], properties["Units"])
        print(f"somebody else has changed the scope in the meantime: {shown}", file=sys.stderr)


async def _changing(
    client: Client, change: Callable[[], Awaitable[None]], *, stays: bool, wait: bool = True
) -> dict[str, Any]:
    """Makes a change, prints the scope that is then in force, and returns the properties.

    With `wait` it also prints how many live connections joined.
    """
    before, counted = render.printable(await client.properties()), await client.call("Stats")
    await change()
    properties: dict[str, Any] = render.printable(await client.properties())
    after = await client.call("Stats")
    if properties["State"] == "enabled":
        # `Since` changes with the datapath, which another scope and other limits replace
        same = all(before[name] == properties[name] for name in ("Since", "Scope"))
        left = after["retired_connections"] - counted["retired_connections"]
        print(scope.summary(properties, 0 if same else left, stays))
        if wait and not same:
            sys.stdout.flush()
            print(await _joined(client))
    return properties


async def _joined(client: Client) -> str:
    """How many live connections the daemon has joined, once it can know which carry messages."""
    deadline = time.monotonic() + JOIN_S
    async with progress.shown("joining connections that are established already"):
        found = await client.property("LiveConnections")
        while time.monotonic() < deadline and _may_join(found):
            await asyncio.sleep(JOIN_PAUSE_S)
            found = await client.property("LiveConnections")
    return scope.joined(found)


def _may_join(found: dict[str, Any]) -> bool:
    """Whether a connection may still join: the daemon has to look twice to see its messages."""
    left = sum(one["connections"] for one in found["left"])
    return bool(found["looks"] < 1 or found["eligible"] > left)


async def _start(client: Client) -> None:
    """Lets the bus start the daemon, if it is not running and its unit is enabled.

    Raises NotRunning if it does not start.
    """
    try:
        await client.properties()
    except NotRunning as error:
        # with a bad file the daemon would not start, and the bus would wait in vain
        if mistake := offline.configuration_mistake():
            raise NotRunning(f"{error}: {mistake}; correct it and try again", why=True) from error
        await client.properties(start=True)


async def _disable(client: Client, arguments: argparse.Namespace) -> None:
    async def left() -> str:
        return f"{(await client.call('Stats'))['active_connections']:,} left"

    try:
        before = await client.properties()
    except NotRunning:
        if os.geteuid() == 0:
            offline.disable()
            return
        await _start(client)
        before = await client.properties()
    async with progress.shown("waiting for programs to read what was sent to them", left):
        await client.call("Disable")
    if before["State"] == "disabled":
        print("acceleration was already disabled", file=sys.stderr)
    if arguments.force and (await client.properties())["State"] == "draining":
        await _reset(client)
    if (await client.properties())["State"] == "draining":
        print(
            "draining: some programs have not read their data yet. Their connections leave "
            "acceleration when they do; sockredirctl disable --force resets them",
            file=sys.stderr,
        )


async def _reset(client: Client) -> None:
    """Resets the connections that have not drained within the timeout, and prints them."""
    left = await client.all_connections({})
    await client.call("DisableWith", "a{sv}", {"force": Variant("b", True)})
    still = {(c["client"], c["server"]) for c in await client.all_connections({})}
    gone = [c for c in render.printable(left) if (c["client"], c["server"]) not in still]
    plural = "s"[: len(gone) != 1]
    print(f"reset {len(gone)} connection{plural} that had not drained", file=sys.stderr)
    for c in gone:
        programs = f"{list_.who(c, 'client')} > {list_.who(c, 'server')}"
        print(f"  {c['client']} -> {c['server']}  {programs}", file=sys.stderr)


async def _reload(client: Client, _arguments: argparse.Namespace) -> None:
    await _changing(client, lambda: client.call("Reload"), stays=True)


async def _status(client: Client, arguments: argparse.Namespace) -> None:
    properties = await client.properties()
    stats = await client.call("Stats")
    if arguments.json:
        print(json.dumps({**properties, "Stats": stats}))
    else:
        columns = shutil.get_terminal_size().columns
        print(render.status(render.printable(properties), stats, time.time(), columns))


async def _stats(client: Client, arguments: argparse.Namespace) -> None:
    stats = await client.call("Stats")
    style = "json" if arguments.json else arguments.format
    if style == "json":
        print(json.dumps(stats))
    elif style == "text":
        print(render.stats(stats))
    else:
        from sockredirctl import metrics  # slow to import, and no other command needs it

        properties = await client.properties()
        print(metrics.text(properties, stats, metrics.STYLES[style]), end="")


async def _top(client: Client, arguments: argparse.Namespace) -> None:
    from sockredirctl import top  # slow to import, too

    await top.run(client, arguments)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sockredird")
    except PackageNotFoundError:  # run from a checkout
        return "(checkout)"


def _with_timeout(seconds: int) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--timeout",
        type=values.seconds,
        default=float(seconds),
        metavar="SECONDS",
        help=f"how long to wait for an answer (default: {seconds})",
    )
    return parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sockredirctl",
        description="Controls sockredird, which accelerates TCP between programs on this host.",
        epilog="exit status: 0 done, 1 failed, 2 usage, 3 not running, 4 denied, 5 timed out, "
        "6 nothing found",
    )
    parser.add_argument("--version", action="version", version=f"sockredirctl {_version()}")
    common = _with_timeout(30)
    compiling = _with_timeout(300)  # as long as systemd gives the daemon to start
    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, function, parents, text in (
        ("enable", _enable, [compiling], "accelerate new connections"),
        ("disable", _disable, [common], "stop accelerating, and hand connections back to TCP"),
        ("reload", _reload, [compiling], "apply the configuration file to new connections"),
        ("status", _status, [common, reading], "show state, scope and totals"),
        ("stats", _stats, [common, reading], "show all counters"),
        ("bench", bench.run, [compiling, reading], "measure what acceleration gains on this host"),
        ("check", check.run, [compiling, reading], "try out the kernel, and look for problems"),
        ("list", list_.run, [common, reading], "show accelerated connections, busiest first"),
        ("top", _top, [common, reading], "show accelerated connections in a live table"),
        ("trace", trace.run, [common, reading], "follow what happens to connections, live"),
        ("explain", explain.run, [common, reading], "show why a connection is accelerated or not"),
        ("learned", learned.run, [common, reading], "show listeners that are left on TCP, and why"),
    ):
        command = commands.add_parser(name, parents=parents, help=text, description=text)
        command.set_defaults(function=function)
        if function is _enable:
            scope.add_arguments(command)
        elif function is _disable:
            command.add_argument(
                "--force",
                action="store_true",
                help="reset connections with data that is still unread after the drain timeout",
            )
        elif function is _stats:
            command.add_argument(
                "--format",
                choices=["text", "json", "openmetrics", "prometheus"],
                default="text",
                help="how to print them; prometheus is the older text format (default: text)",
            )
        elif function is list_.run:
            list_.add_arguments(command)
        elif function is _top:
            _add_top_arguments(command)
        elif function is check.run:
            check.add_arguments(command)
        elif function is bench.run:
            bench.add_arguments(command)
        elif function is explain.run:
            explain.add_arguments(command)
            command.set_defaults(mistake=explain.mistake, command=command)
        elif function is learned.run:
            learned.add_arguments(command)
            command.set_defaults(mistake=learned.mistake, command=command)
    return parser


def _add_top_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sort", choices=list_.SORTS, default="rate", help="largest first (default: rate)"
    )
    command.add_argument(
        "--interval",
        type=values.seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two updates, at least 0.5 (default: 1)",
    )


async def _run(arguments: argparse.Namespace) -> None:
    # Client reports what happens to the bus; dbus-next's forgotten futures would, once more
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    client = Client(arguments.timeout)
    try:
        await client.connect()
    except NoBus:
        if arguments.function is not _disable or os.geteuid() != 0:
            raise
        offline.disable()  # needs no bus
        return
    try:
        await arguments.function(client, arguments)
    finally:
        client.disconnect()


def main() -> int:
    arguments = _parser().parse_args()
    if "mistake" in arguments and (words := arguments.mistake(arguments)):
        arguments.command.error(words)
    if getattr(arguments, "output", "") == "json":
        arguments.json = True
    try:
        asyncio.run(_run(arguments))
        sys.stdout.flush()
    except ClientError as error:
        if isinstance(error, NotRunning) and not error.why:
            error = offline.explained(error)
        print(f"sockredirctl: {render.printable(str(error))}", file=sys.stderr)
        return error.code
    except (KeyboardInterrupt, BrokenPipeError):
        # the reader of a pipe has gone, or Ctrl-C ended a trace: neither is an error
        sys.stderr.close()
        return Exit.DONE
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
