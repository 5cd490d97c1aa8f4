"""Services that started with the host are accelerated, whichever came first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import services
from shell import sh

pytestmark = pytest.mark.userland


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """The tests after this one count all connections of the host."""
    yield
    units = [unit for pair in services.PORTS for unit in services.names(pair)]
    sh(f"systemctl disable --now {' '.join(units)}")


@pytest.mark.parametrize("pair", services.PORTS)
def test_whichever_started_first(pair: str) -> None:
    services.check_pair(pair)
