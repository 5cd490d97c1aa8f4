"""What the tests with one engine share; each module names its own in ENGINE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import engines
import pytest
from shell import sh
from status import loaded


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    name = str(request.module.ENGINE)
    if name == "docker":
        sh("systemctl start docker")
    engines.import_image(name)
    return name


@pytest.fixture
def quadlets(running: None, engine: str) -> None:
    """Containers of podman's that are systemd units."""
    if not Path("/usr/lib/systemd/system-generators/podman-system-generator").exists():
        pytest.skip("this podman has no quadlets")


@pytest.fixture
def anywhere(running: None, engine: str) -> Iterator[None]:
    """Enabled for containers, too."""
    sh(engines.ENABLE)
    yield
    sh("sockredirctl disable")
    assert not loaded()


@pytest.fixture
def shop(engine: str) -> Iterator[None]:
    with engines.network(engine, "shop"):
        yield
