"""The process: event loop, signals, systemd, the scrape endpoint."""

import sockredird.bus  # noqa: F401  # before any module here imports dbus_next
