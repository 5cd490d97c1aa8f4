"""docs/containers.md, with Docker."""

from __future__ import annotations

import documented
import pytest
from engines import identity
from shell import sh
from status import accelerated_now, soon

ENGINE = "docker"
CHAPTER = "Docker"
CONNECTIONS = 4  # of the application


@pytest.fixture
def compose(running: None, engine: str) -> None:
    if not sh("docker compose version || true").startswith("Docker Compose"):
        pytest.skip("this Docker has no compose")
    documented.write_files(CHAPTER, "/srv/shop")


def test_compose(compose: None) -> None:
    names: set[str] = set()

    def accelerated() -> None:
        # and one of a health check, perhaps
        soon(lambda: accelerated_now() >= CONNECTIONS, "the application is accelerated")
        names.update(identity(ENGINE, f"shop-{service}-1")[:12] for service in ("app", "db"))

    for said in documented.type_commands(CHAPTER, accelerated):
        assert said.count("redis-benchmark") == CONNECTIONS
        assert all(name in said for name in names)
    assert len(names) == 2
    sh("sockredirctl disable")
