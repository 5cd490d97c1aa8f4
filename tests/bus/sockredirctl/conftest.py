"""The fixtures of the daemon's tests."""

from daemon.conftest import client, daemon, enabled, host, system_bus

__all__ = ["client", "daemon", "enabled", "host", "system_bus"]
