"""The configuration file: what is valid is understood, anything else is InvalidConfig."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockredird import config
from sockredird.config import Config
from sockredird.errors import InvalidConfig
from support.daemon.process import toml

# one file for all examples is what is wanted
settings.register_profile("file", suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("file")

# NUL is in no path
TEXT = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=40
)
PORTS = st.lists(st.integers(1, 65535), max_size=5)
PATHS = TEXT.map(lambda text: f"/{text}")
VALID: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "scope": {
        "cgroup": TEXT,
        "units": st.lists(st.sampled_from(["a.service", "-.slice", "b-c@1.scope"]), max_size=3),
        "addresses": st.sampled_from(["loopback", "host", "any"]),
        "exclude_ports": PORTS,
        "only_ports": PORTS,
        "exclude_cgroups": st.lists(st.sampled_from(["/a", "/system.slice/b.service"])),
        "exclude_units": st.lists(st.sampled_from(["a.service", "system.slice"]), max_size=2),
    },
    "limits": {
        "max_connections": st.integers(1, 1_000_000),
        "window_bytes": st.integers(4096, 1 << 30),
        "drain_timeout_s": st.integers(0, 3600) | st.floats(0, 3600),
    },
    "paths": {"bpffs": PATHS, "state": PATHS, "runtime": PATHS},
}
KEYS = [(table, key) for table, keys in VALID.items() for key in keys]

tables = st.fixed_dictionaries(
    {}, optional={name: st.fixed_dictionaries({}, optional=keys) for name, keys in VALID.items()}
)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXT
values = st.recursive(
    scalars.filter(lambda item: item is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sockredird.toml"


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def invalid(*words: str) -> Iterator[None]:
    with pytest.raises(InvalidConfig) as caught:
        yield
    text = str(caught.value)
    assert all(word in text for word in words), text


def load(file: Path, text: str) -> Config:
    file.write_text(text)
    return config.load(file, required=True)


def as_tables(loaded: Config) -> dict[str, dict[str, Any]]:
    return {
        table: {key: getattr(getattr(loaded, table), key) for key in keys}
        for table, keys in VALID.items()
    }


@given(tables)
def test_valid_files_round_trip(file: Path, given_tables: dict[str, dict[str, Any]]) -> None:
    loaded = load(file, toml(given_tables))
    found = as_tables(loaded)
    for table, keys in given_tables.items():
        for key, value in keys.items():
            assert found[table][key] == value
            assert type(found[table][key]) is type(value)
    assert load(file, toml(found)) == loaded


def test_no_file_is_all_defaults(file: Path) -> None:
    assert config.load(file) == Config() == load(file, "")
    assert config.load(file).paths.bpffs == "/sys/fs/bpf/sockredird"


@given(st.sampled_from(["", *VALID]), TEXT, values)
def test_unknown_keys(file: Path, table: str, key: str, value: Any) -> None:
    known = VALID[table] if table else VALID
    if key in known:
        return
    with invalid(str(file)):
        load(file, toml({table: {key: value}}))


def is_unit(value: Any) -> bool:
    """Without a suffix it is a service."""
    if not isinstance(value, str):
        return False
    known = re.fullmatch(r".*\.(target|timer|path|device|automount)", value, re.DOTALL)
    return not known and re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,239}", value) is not None


def is_valid(key: str, value: Any) -> bool:
    """Whether a value drawn at random happens to be right."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if key == "cgroup":
        return isinstance(value, str)
    if key == "addresses":
        return value in ("loopback", "host", "any")
    if key in ("bpffs", "state", "runtime"):
        return isinstance(value, str) and value.startswith("/") and len(value) > 1
    if key.endswith("_ports"):
        return isinstance(value, list) and all(
            isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536
            for port in value
        )
    if key in ("units", "exclude_units"):
        return isinstance(value, list) and all(map(is_unit, value))
    if key == "exclude_cgroups":
        return isinstance(value, list) and all(str(path).startswith("/") for path in value)
    if key == "drain_timeout_s":
        return (whole or isinstance(value, float)) and 0 <= value <= 3600
    low, high = (1, 1_000_000) if key == "max_connections" else (4096, 1 << 30)
    return whole and low <= value <= high


@given(st.sampled_from(KEYS), values)
def test_wrong_types(file: Path, where: tuple[str, str], value: Any) -> None:
    table, key = where
    if is_valid(key, value):
        return
    with invalid(str(file), key):
        load(file, toml({table: {key: value}}))


@given(st.sampled_from(list(VALID)), values)
def test_wrong_tables(file: Path, table: str, value: Any) -> None:
    if isinstance(value, dict):
        return
    with invalid(str(file), table):
        load(file, toml({"": {table: value}}))


@given(st.binary(max_size=200))
def test_any_bytes(file: Path, data: bytes) -> None:
    """Either valid, or InvalidConfig; never another exception."""
    file.write_bytes(data)
    try:
        config.load(file, required=True)
    except InvalidConfig as error:
        assert str(file) in str(error)


@given(st.dictionaries(st.sampled_from(list(VALID["scope"])) | TEXT, values, max_size=3))
def test_override_scope(keys: dict[str, Any]) -> None:
    base = Config().scope
    right = all(key in VALID["scope"] and is_valid(key, keys[key]) for key in keys)
    if not right:
        with invalid():
            config.override_scope(base, keys)
        return
    for key in {"units", "exclude_units"} & keys.keys():
        keys[key] = list(map(config.unit_name, keys[key]))
    found = config.override_scope(base, keys).as_dict()
    assert found == {**base.as_dict(), **keys}


@pytest.mark.parametrize("name", ["__pydantic_self__", "self", "__class__", "model_config"])
def test_keys_that_mean_something_in_python(file: Path, name: str) -> None:
    with invalid():
        load(file, f"{name} = 1\n")
    with invalid():
        load(file, f"[scope]\n{name} = 1\n")
    with invalid():
        config.override_scope(Config().scope, {name: 1})
