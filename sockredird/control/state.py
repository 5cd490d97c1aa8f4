"""Whether acceleration is enabled, and with which scope: remembered across boots."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sockredird import config
from sockredird.config import Scope
from sockredird.errors import InvalidConfig, LoadFailed
from sockredird.kernel import files

log = logging.getLogger(__name__)


class Intent:
    """A file below [paths] state, with the keys of [scope] that Enable was given."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def remembered(self) -> dict[str, Any] | None:
        """The overrides of the scope if acceleration is enabled, or None."""
        intent = files.read(self._path)
        scope = intent.get("scope")
        # a damaged scope must not become the whole host
        return scope if intent.get("enabled") and isinstance(scope, dict) else None

    def usable(self, configured: Scope) -> dict[str, Any]:
        """The remembered overrides; none, with a warning, if they do not fit `configured`."""
        overrides = self.remembered() or {}
        try:
            config.override_scope(configured, overrides)
        except InvalidConfig as error:
            log.warning("%s is ignored: %s", self._path, error)
            return {}
        return overrides

    def remember(self, overrides: dict[str, Any] | None) -> None:
        """Remembers overrides, or for None that acceleration is disabled.

        Raises LoadFailed, having changed nothing.
        """
        if self.remembered() == overrides:
            return
        try:
            if overrides is None:
                files.remove(self._path)
            else:
                files.write(self._path, {"enabled": True, "scope": overrides})
        except OSError as error:
            raise LoadFailed(f"cannot note it down for the next boot: {error}") from error
