"""The daemon's fixtures, here too."""

from daemon.conftest import host, system_bus  # noqa: F401
