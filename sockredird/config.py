"""The configuration file: /etc/sockredird/sockredird.toml, checked by pydantic (1.10 or 2.x)."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, StrictBool, ValidationError, confloat, conint, constr

from sockredird.errors import InvalidConfig
from sockredird.kernel.cgroup import components

DEFAULT_PATH = Path("/etc/sockredird/sockredird.toml")

_UNIT = r"^[A-Za-z0-9:_.\\@-]{1,247}\.(service|scope|slice|socket|mount|swap)$"  # with a cgroup
_PATTERN = "regex" if pydantic.VERSION.startswith("1.") else "pattern"
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

    def ports(self) -> frozenset[int]:
        """Listening ports whose connections are in scope."""
        wanted = set(self.only_ports) or set(range(1, 65536))
        return frozenset(wanted - set(self.exclude_ports))

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Scope.__annotations__}


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
    """`unprofitable`: leave listeners alone that acceleration does no good."""

    unprofitable: Switch = True


class Config(BaseModel, extra="forbid", frozen=True):
    scope: Scope = Scope()
    limits: Limits = Limits()
    paths: Paths = Paths()
    metrics: Metrics = Metrics()
    learning: Learning = Learning()


_SECTIONS: dict[str, type[BaseModel]] = {
    "scope": Scope,
    "limits": Limits,
    "paths": Paths,
    "metrics": Metrics,
    "learning": Learning,
}


def load(path: Path, *, required: bool = False) -> Config:
    """Reads a configuration; without the file (and unless `required`) all defaults.

    Raises InvalidConfig naming the file, the key and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError as error:
        if not required:
            return Config()
        raise InvalidConfig(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, and what it lets through
        raise InvalidConfig(f"{path}: not valid TOML: {error}") from error
    try:
        return _check(data)
    except ValidationError as error:
        raise InvalidConfig(f"{path}: {_explain(error)}") from error
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from error


def load_paths(path: Path) -> Config:
    """The file's [paths] and drain timeout where they can be used, and defaults for the rest.

    For what has to work with a file that has a mistake somewhere. Raises nothing.
    """
    try:
        return load(path)
    except InvalidConfig:
        pass
    kept: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        data = tomllib.load(file)
        for name in ("paths", "limits"):
            with suppress(InvalidConfig, ValidationError):
                _check({**kept, name: data.get(name, {})})
                kept[name] = data.get(name, {})
    return _check(kept)


def _check(data: dict[str, Any]) -> Config:
    """Raises ValidationError or InvalidConfig."""
    _known(Config, data, "")
    for name, section in data.items():
        if not isinstance(section, dict):
            raise InvalidConfig(f"{name}: not a table")
        _known(_SECTIONS[name], section, f"{name}.")
    config = Config(**data)
    for name in Paths.__annotations__:
        if not Path(getattr(config.paths, name)).is_absolute():
            raise InvalidConfig(f"paths.{name}: not an absolute path")
    for cgroup in config.scope.exclude_cgroups:
        components(cgroup)
    try:
        listen_address(config.metrics.listen)
    except ValueError as error:
        raise InvalidConfig(f"metrics.listen: {error}") from error
    return config


def listen_address(listen: str) -> Path | tuple[str, int] | None:
    """Where the metrics endpoint is; None where there is none.

    Raises ValueError for what others than this host could reach.
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


def _known(model: type[BaseModel], data: dict[str, Any], prefix: str) -> None:
    """pydantic refuses unknown keys, too, but some are arguments of its own."""
    for key in data:
        if key not in model.__annotations__:
            raise InvalidConfig(f"{prefix}{key}: no such key")


def override_scope(scope: Scope, keys: dict[str, Any]) -> Scope:
    """`scope` with some keys replaced, as EnableWith() takes them. Raises InvalidConfig."""
    _known(Scope, keys, "scope.")
    try:
        result = Scope(**{**scope.as_dict(), **keys})
    except ValidationError as error:
        raise InvalidConfig(f"scope: {_explain(error)}") from error
    for cgroup in result.exclude_cgroups:
        components(cgroup)
    return result


def _explain(error: ValidationError) -> str:
    """One line for all mistakes; the wording of both pydantic versions is fit for users."""
    return "; ".join(
        f"{'.'.join(str(part) for part in mistake['loc'])}: {mistake['msg']}"
        for mistake in error.errors()
    )
