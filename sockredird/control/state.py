"""Whether acceleration is enabled, and with which scope: remembered across boots."""

from __future__ import annotations

import logging
from contextlib import suppress
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
        """The overrides of the scope if acceleration is to be enabled, or None.

        Raises LoadFailed if the file cannot be read, as when descriptors run out.
        """
        try:
            intent = files.read(self._path)
        except OSError as error:
            raise LoadFailed(
                f"cannot read whether acceleration is to be enabled: {error}; nothing was changed"
            ) from error
        scope = intent.get("scope")
        # a damaged scope must not become the whole host
        return scope if intent.get("enabled") and isinstance(scope, dict) else None

    def usable(self, configured: Scope) -> dict[str, Any]:
        """The remembered overrides of `configured`; none if the file that has them is damaged.

        Raises LoadFailed as remembered() does.
        """
        overrides = self.remembered() or {}
        try:
            config.override_scope(configured, overrides)
        except InvalidConfig as error:
            log.warning("%s is ignored: %s", self._path, error)
            return {}
        return overrides

    def remember(self, overrides: dict[str, Any] | None) -> None:
        """Remembers `overrides`; None: acceleration is to be disabled.

        Raises LoadFailed, having changed nothing.
        """
        with suppress(LoadFailed):
            if self.remembered() == overrides:
                return
        try:
            if overrides is None:
                files.remove(self._path)
            else:
                files.write(self._path, {"enabled": True, "scope": overrides})
        except OSError as error:
            raise LoadFailed(f"cannot save this for the next boot: {error}") from error
