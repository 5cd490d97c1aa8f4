"""The daemon's fixtures."""

from daemon.conftest import (  # noqa: F401
    Host,
    client,
    daemon,
    enabled,
    host,
    system_bus,
)
