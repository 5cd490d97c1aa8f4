"""dbus-next 0.2.3 is older than Python 3.15 and 3.16, which lack names that it uses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sockredirctl
from sockredird import bus
from support.checkout import REPOSITORY
from support.daemon.process import environment

PROGRAM = Path(__file__).with_name("missing_names.py")
NAMES = [f"{module.__name__}.{name}" for module, name, _ in bus._MISSING_NAMES]
MODULES = ("sockredird.service.daemon", "sockredird.bus.manager1", "sockredirctl.client")
NEWER = [python for python in ("python3.15", "python3.16") if shutil.which(python)]


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = f"{REPOSITORY}:{REPOSITORY / 'tests'}:/usr/lib/python3/dist-packages"
    return subprocess.run(
        [python, *arguments],
        env={**environment(""), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", MODULES)
def test_without_the_names(module: str) -> None:
    done = run(sys.executable, str(PROGRAM), module, *NAMES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_dbus_next_needs_each_name(name: str) -> None:
    """The program notices that a name is missing, if nothing provides it."""
    module, _, attribute = name.rpartition(".")
    code = (
        f"import {module}, sys, runpy, sockredird.bus.manager1\n"
        f"del {name}\n"
        "[sys.modules.pop(name) for name in [*sys.modules] if name.startswith('dbus_next')]\n"
        "sys.argv = ['', 'sockredird.bus.manager1']\n"
        f"runpy.run_path({str(PROGRAM)!r})"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode != 0
    assert attribute in done.stderr


def test_bus_and_client_provide_the_same_names() -> None:
    def names(table: object) -> list[object]:
        return [(module, name) for module, name, _ in table]  # type: ignore[attr-defined]

    assert names(bus._MISSING_NAMES) == names(sockredirctl._MISSING_NAMES)


def test_bus_is_prepared_before_dbus_next_is_imported() -> None:
    code = "import sys, sockredird.__main__; print('gi.repository' in sys.modules)"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("python", NEWER)
@pytest.mark.parametrize("module", MODULES[1:])
def test_on_a_newer_python(python: str, module: str) -> None:
    """Without those modules that Debian has for its default Python alone, as pydantic's."""
    done = run(python, str(PROGRAM), module)
    assert done.returncode == 0, done.stderr
