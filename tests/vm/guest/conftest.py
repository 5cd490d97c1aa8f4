"""How far the package is set up when a test begins, whatever the tests before it left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import compiled
import pytest
from shell import Failed, sh
from status import BUSCTL, state

CHECKOUT = Path("/share/checkout")
INSTALLED = "dpkg-query -W -f '${db:Status-Status}' sockredird | grep -qx installed"


def import_from_checkout() -> None:
    """Lets a test import what those of the datapath share; they import the installed package."""
    if str(CHECKOUT / "tests") not in sys.path:
        sys.path.insert(0, str(CHECKOUT / "tests"))


def is_true(command: str) -> bool:
    try:
        sh(command)
    except Failed:
        return False
    return True


@pytest.fixture(autouse=True)
def compiled_once() -> Iterator[None]:
    yield
    compiled.keep()


@pytest.fixture
def purged() -> None:
    if is_true("dpkg-query -W sockredird"):
        sh("apt-get purge -qy sockredird")


@pytest.fixture
def removed() -> None:
    """Its configuration is there still, or again."""
    if not is_true("dpkg-query -W sockredird"):
        sh("apt-get install -qy ./sockredird_*.deb")
    if is_true(INSTALLED):
        sh("apt-get remove -qy sockredird")


@pytest.fixture
def installed() -> None:
    if not is_true(INSTALLED):
        sh("apt-get install -qy ./sockredird_*.deb")


@pytest.fixture
def running(installed: None) -> None:
    sh("systemctl start sockredird")
    compiled.put_back()


@pytest.fixture
def disabled(running: None) -> None:
    if state() != "disabled":
        sh(BUSCTL.format("call", "Disable"))


@pytest.fixture
def enabled(running: None) -> None:
    if state() != "enabled":
        sh(BUSCTL.format("call", "Enable"))


@pytest.fixture
def nothing_learned(enabled: None) -> Iterator[None]:
    sh(BUSCTL.format("call", "Forget s ''"))
    yield
    sh(BUSCTL.format("call", "Forget s ''"))


@pytest.fixture
def fleet(installed: None) -> Callable[[int], AbstractContextManager[Any]]:
    """Byte-checked traffic, from the tests of the datapath (they import the installed package).

    Of programs that poll, which the configuration as it is installed accelerates.
    """
    import_from_checkout()
    from support.fleet import fleet

    return partial(fleet, polls=True)
