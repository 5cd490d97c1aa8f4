"""The configuration file: /etc/sockredird/sockredird.toml, checked by pydantic (1.10 or 2.x)."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, StrictBool, ValidationError, confloat, conint, constr

from sockredird.errors import InvalidConfig
from sockredird.kernel.cgroup import components

DEFAULT_PATH = Path("/etc/sockredird/sockredird.toml")

_HEADER = re.compile(r"\s*\[+([^\]]*)\]")
_ASSIGNMENT = re.compile(r"\s*([\w.\-\s\"']+?)\s*=")
_KINDS = "service|scope|slice|socket|mount|swap"  # of units, with a cgroup
_UNIT = rf"^[A-Za-z0-9:_.\\@-]{{1,247}}\.({_KINDS})$"
_KIND = re.compile(rf"\.({_KINDS}|target|timer|path|device|automount)$")
_VERSION_1 = pydantic.VERSION.startswith("1.")
_PATTERN = "regex" if _VERSION_1 else "pattern"
# Class keywords and con*() are what pydantic 1.10 and 2.x both take without a warning. Everything
# is strict: a port given as "80" is a mistake, not a port.
if TYPE_CHECKING:
    Port = int
    Connections = int
    Window = int
    Seconds = float
    Interval = float
    Bytes = int
    Text = str
    Unit = str
    AbsolutePath = str
    Address = str
    Switch = bool
else:
    Port = conint(strict=True, ge=1, le=65535)
    Connections = conint(strict=True, ge=1, le=1_000_000)
    Window = conint(strict=True, ge=4096, le=1 << 30)
    Seconds = conint(strict=True, ge=0, le=3600) | confloat(strict=True, ge=0, le=3600)
    Interval = conint(strict=True, ge=1, le=3600) | confloat(strict=True, ge=0.1, le=3600)
    Bytes = conint(strict=True, ge=0, le=1 << 50)
    Text = constr(strict=True, min_length=1)
    Unit = constr(strict=True, **{_PATTERN: _UNIT})
    AbsolutePath = constr(strict=True, min_length=2)
    Address = constr(strict=True)
    Switch = StrictBool


class Scope(BaseModel, extra="forbid", frozen=True):
    """Which connections are accelerated."""

    cgroup: Text = "/"
    units: list[Unit] = []
    addresses: Literal["loopback", "host", "any"] = "loopback"
    exclude_ports: list[Port] = [21, 23, 513, 514]
    only_ports: list[Port] = []
    exclude_cgroups: list[Text] = []
    blocking_readers: Literal["tcp", "accelerate"] = "tcp"
    exclude_units: list[Unit] = []

    def ports(self) -> frozenset[int]:
        """Listening ports whose connections are in scope."""
        wanted = set(self.only_ports) or set(range(1, 65536))
        return frozenset(wanted - set(self.exclude_ports))

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Scope.__annotations__}

    def given(self) -> frozenset[str]:
        """The keys that were set, rather than left at their defaults."""
        given: set[str] = getattr(self, "__fields_set__" if _VERSION_1 else "model_fields_set")
        return frozenset(given)


class Limits(BaseModel, extra="forbid", frozen=True):
    max_connections: Connections = 65536
    window_bytes: Window = 4 << 20
    memory_bytes: Bytes = 0  # 0: a thirty-second of RAM
    revalidate_s: Interval = 10.0
    drain_timeout_s: Seconds = 5.0


class Paths(BaseModel, extra="forbid", frozen=True):
    bpffs: AbsolutePath = "/sys/fs/bpf/sockredird"
    state: AbsolutePath = "/var/lib/sockredird"
    runtime: AbsolutePath = "/run/sockredird"


class Metrics(BaseModel, extra="forbid", frozen=True):
    """`listen`: "" (off), "unix:/path", or a loopback "address:port"."""

    listen: Address = ""


class Learning(BaseModel, extra="forbid", frozen=True):
    """`unprofitable`: leave listeners on TCP whose connections gain nothing."""

    unprofitable: Switch = True


class Config(BaseModel, extra="forbid", frozen=True):
    scope: Scope = Scope()
    limits: Limits = Limits()
    paths: Paths = Paths()
    metrics: Metrics = Metrics()
    learning: Learning = Learning()


_TABLES: dict[str, type[BaseModel]] = {
    "scope": Scope,
    "limits": Limits,
    "paths": Paths,
    "metrics": Metrics,
    "learning": Learning,
}

# What each key has to be, for error texts; pydantic's own texts name types and patterns.
_PORTS = "a list of ports, whole numbers from 1 to 65535"
_UNITS = f'a list of systemd units ({_KINDS.replace("|", ", ")}), like ["redis-server.service"]'
_ABSOLUTE = "an absolute path below the root"
EXPECTED = {
    "scope.cgroup": 'the path of a cgroup, like "/system.slice"',
    "scope.units": _UNITS,
    "scope.addresses": '"loopback", "host" or "any"',
    "scope.exclude_ports": _PORTS,
    "scope.only_ports": _PORTS,
    "scope.exclude_cgroups": 'a list of paths of cgroups, like ["/user.slice"]',
    "scope.exclude_units": _UNITS,
    "scope.blocking_readers": '"tcp" or "accelerate"',
    "limits.max_connections": "a whole number from 1 to 1000000",
    "limits.window_bytes": "a whole number of bytes, from 4096 to 1073741824",
    "limits.memory_bytes": "a whole number of bytes, 0 for a thirty-second of the memory",
    "limits.revalidate_s": "a number of seconds, from 0.1 to 3600",
    "limits.drain_timeout_s": "a number of seconds, from 0 to 3600",
    "paths.bpffs": _ABSOLUTE,
    "paths.state": _ABSOLUTE,
    "paths.runtime": _ABSOLUTE,
    "metrics.listen": '"unix:/PATH", or a loopback address and port, like "127.0.0.1:9109"',
    "learning.unprofitable": "true or false",
}
_SHOWN = 60  # characters of a wrong value
Mistake = tuple[str, str]  # a key, like scope.units, or a table; what is wrong with it


def load(path: Path, *, required: bool = False) -> Config:
    """Reads a configuration; without the file (and unless `required`) all defaults.

    Raises InvalidConfig naming the file, the line, the key and what is wrong with it.
    """
    try:
        text = path.read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError as error:
        if not required:
            return Config()
        raise InvalidConfig(f"{path}: no such file") from error
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path}: cannot be read: it is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, and what it lets through
        raise InvalidConfig(f"{path}: {_not_toml(error)}") from error
    if mistakes := _mistakes(data):
        found = [(_line(text, key), f"{key}: {words}") for key, words in mistakes]
        told = (f"line {line}: {words}" if line else words for line, words in sorted(found))
        raise InvalidConfig(f"{path}: {'; '.join(told)}")
    return Config(**data)


def load_paths(path: Path) -> Config:
    """The file's [paths] and [limits] where they are valid, and defaults for the rest.

    For commands that have to work even with a faulty file. Raises nothing.
    """
    with suppress(InvalidConfig):
        return load(path)
    valid: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        data = tomllib.load(file)
        for name in ("paths", "limits"):
            if name in data and not _mistakes({name: data[name]}):
                valid[name] = data[name]
    return Config(**valid)


def override_scope(scope: Scope, keys: dict[str, Any]) -> Scope:
    """`scope` with some keys replaced, as EnableWith() takes them. Raises InvalidConfig.

    A list whose key has `add_` before it is added to that of `scope`.
    """
    added = {
        key.removeprefix("add_"): value for key, value in keys.items() if key.startswith("add_")
    }
    replaced = {key: value for key, value in keys.items() if not key.startswith("add_")}
    for part in (replaced, added):
        if mistakes := _mistakes({"scope": part}):
            raise InvalidConfig("; ".join(f"{key}: {words}" for key, words in mistakes))
    values = {**scope.as_dict(), **replaced}
    for key, more in added.items():
        if not isinstance(values[key], list):
            raise InvalidConfig(f"scope.{key}: nothing can be added, since it is not a list")
        values[key] = list(dict.fromkeys([*values[key], *more]))
    return Scope(**_with_suffixes(values))


def unit_name(name: str) -> str:
    """A unit's name, with .service if it has no suffix: as systemctl(1) takes names."""
    return name if _KIND.search(name) else f"{name}.service"


def listen_address(listen: str) -> Path | tuple[str, int] | None:
    """Where the metrics endpoint is; None where there is none.

    Raises ValueError for an address that other hosts could reach.
    """
    if not listen:
        return None
    if listen.startswith("unix:/"):
        return Path(listen.removeprefix("unix:"))
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = ip_address(host).is_loopback and 0 < int(port) < 65536
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f'{listen!r} is neither "unix:/PATH" nor a loopback ADDRESS:PORT')
    return host, int(port)


def _mistakes(data: dict[str, Any]) -> list[Mistake]:
    """The mistakes in a whole file. Adds missing suffixes to the units in `data`."""
    if found := list(_unknown(data)):
        return found
    if isinstance(data.get("scope"), dict):
        data["scope"] = _with_suffixes(data["scope"])
    try:
        config = Config(**data)
    except ValidationError as error:
        return _refused(error, data)
    except RecursionError:
        return [("scope", "is nested too deeply")]
    return list(_unusable(config))


def _unknown(data: dict[str, Any]) -> Iterator[Mistake]:
    """Unknown tables and keys. pydantic refuses them, too, but takes some for its own arguments."""
    for name, table in data.items():
        if name not in _TABLES:
            yield name, f"no such table; there are {', '.join(_TABLES)}"
        elif not isinstance(table, dict):
            yield name, f"must be a table: [{name}]"
        else:
            keys = _TABLES[name].__annotations__
            for key in table.keys() - keys.keys():
                near = get_close_matches(key, keys, 2) or [k for k in keys if key in k]
                hint = f"did you mean {' or '.join(near)}?" if near else "see sockredird.toml(5)"
                yield f"{name}.{key}", f"no such key; {hint}"


def _refused(error: ValidationError, data: dict[str, Any]) -> list[Mistake]:
    """One mistake for each key, however many errors pydantic has for it."""
    found: dict[str, str] = {}
    for mistake in error.errors():
        table, key, *more = mistake["loc"]
        value = data[str(table)][str(key)]
        if more and isinstance(more[0], int) and isinstance(value, list):
            value = value[more[0]]
        name = f"{table}.{key}"
        found.setdefault(name, f"must be {EXPECTED[name]}, not {_shown(value)}")
    return list(found.items())


def _unusable(config: Config) -> Iterator[Mistake]:
    for name in Paths.__annotations__:
        path = getattr(config.paths, name)
        if not Path(path).is_absolute() or "\0" in path:
            yield f"paths.{name}", f"must be {_ABSOLUTE}, not {_shown(path)}"
    if "\0" in config.scope.cgroup:
        yield "scope.cgroup", f"must be {EXPECTED['scope.cgroup']}"
    for cgroup in config.scope.exclude_cgroups:
        try:
            components(cgroup)
        except InvalidConfig as error:
            yield "scope.exclude_cgroups", str(error).removeprefix("scope.exclude_cgroups: ")
    try:
        listen_address(config.metrics.listen)
    except ValueError:
        expected = EXPECTED["metrics.listen"]
        yield "metrics.listen", f"must be {expected}, not {_shown(config.metrics.listen)}"


def _with_suffixes(scope: dict[str, Any]) -> dict[str, Any]:
    named = dict(scope)
    for key in ("units", "exclude_units"):
        if isinstance(named.get(key), list):
            named[key] = [unit_name(x) if isinstance(x, str) else x for x in named[key]]
    return named


def _shown(value: Any) -> str:
    # JSON knows neither TOML's dates nor the D-Bus Variants that a list may hold
    text = json.dumps(value, default=lambda x: getattr(x, "value", str(x)), ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _not_toml(error: Exception) -> str:
    if not isinstance(error, tomllib.TOMLDecodeError):
        return "not valid TOML: a number is too long, or something is nested too deeply"
    what, _, where = str(error).removesuffix(")").partition(" (at ")
    return f"{where}: not valid TOML: {what}" if where else f"not valid TOML: {what}"


def _line(text: str, key: str) -> int:
    """The line that sets a key, or begins a table; 0 if it is not found."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            found = table = _plain(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            found = f"{table}.{_plain(assignment[1])}".removeprefix(".")
        else:
            continue
        # `scope = {units = 1}` sets scope.units, and [limits.window_bytes] is no number
        if found == key or (key.startswith(f"{found}.") and found != table):
            return number
    return 0


def _plain(name: str) -> str:
    return re.sub(r"[\s\"']", "", name)
