"""Why nothing was found, in one line."""

from __future__ import annotations

from pathlib import Path

from dbus_next import Message, MessageType, Variant

from sockredirctl.client import Client, plain
from sockredirctl.errors import ClientError, Exit

_SYSTEMD = "org.freedesktop.systemd1"
_KINDS = ("service", "scope", "slice", "socket", "mount", "swap", "target", "timer", "path")


async def why(client: Client, keys: dict[str, Variant], what: str) -> ClientError:
    """`keys` is the query; `what` is what to say if no other reason is known."""
    properties = await client.properties()
    state, problem = properties["State"], properties["Problem"]
    reason = ""
    if state in ("disabled", "failed"):
        reason = f"acceleration is {state}" + (f": {problem}" if problem else "")
    elif "unit" in keys:
        reason = await _unit(client, str(keys["unit"].value))
    elif "pid" in keys:
        reason = _process(int(keys["pid"].value))
    return ClientError(reason or what, Exit.NOTHING)


async def _unit(client: Client, unit: str) -> str:
    if unit.startswith("/"):
        return ""
    name = unit if unit.rpartition(".")[2] in _KINDS else f"{unit}.service"
    loaded, active = await _states(client, name)
    if loaded == "not-found":
        return f"there is no unit {name}, and no process of that name"
    return f"{name} is not running ({active})" if active in ("inactive", "failed") else ""


async def _states(client: Client, unit: str) -> tuple[str, str]:
    """LoadState and ActiveState, empty if systemd does not say."""
    manager = f"{_SYSTEMD}.Manager"
    reply = await client.ask(
        Message(
            _SYSTEMD, "/org/freedesktop/systemd1", manager, "LoadUnit", signature="s", body=[unit]
        )
    )
    if reply.message_type == MessageType.ERROR:
        return "", ""
    properties = Message(
        destination=_SYSTEMD,
        path=reply.body[0],
        interface="org.freedesktop.DBus.Properties",
        member="GetAll",
        signature="s",
        body=[f"{_SYSTEMD}.Unit"],
    )
    answer = await client.ask(properties)
    if answer.message_type == MessageType.ERROR:
        return "", ""
    values = plain(answer.body[0])
    return values["LoadState"], values["ActiveState"]


def _process(pid: int) -> str:
    try:
        elsewhere = Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except FileNotFoundError:
        return f"there is no process {pid}"
    except OSError:
        return ""
    if not elsewhere:
        return ""
    comm = Path(f"/proc/{pid}/comm").read_text().strip()
    return (
        f"{comm}[{pid}] is in another network namespace, where only accelerated connections are "
        "seen, and it has none"
    )
