"""Small JSON files that survive a crash at any point.

The new content is written to a file beside the old one, synced, and renamed over it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no file or, with a warning, if it is damaged."""
    try:
        data = json.loads(path.read_text())
        if isinstance(data, dict):
            return data
        raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is ignored: %s", path, error)
        return {}


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
