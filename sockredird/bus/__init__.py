"""D-Bus: the object on the bus, who may call it, calls out, events to subscribers, units.

It prepares the import of dbus_next, and so comes before it: service/__init__.py sees to that.

Where PyGObject is installed, dbus_next would import it, which takes 4 MB, for a GLib main loop that
the daemon does not use. So it is told that PyGObject is missing.
"""

import asyncio
import inspect
import sys
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _decorate_nothing(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator as it is: nobody asks typing.get_type_hints() about a member on the bus."""
    return decorator


# dbus-next 0.2.3, its last release, uses names that newer Pythons do not have. sockredirctl has
# the same table, since it imports nothing from here.
_MISSING_NAMES: tuple[tuple[ModuleType, str, Callable[..., Any]], ...] = (
    (typing, "no_type_check_decorator", _decorate_nothing),  # removed in Python 3.15
    (asyncio, "iscoroutinefunction", inspect.iscoroutinefunction),  # deprecated, to go in 3.16
)

for _module, _name, _substitute in _MISSING_NAMES:
    if not hasattr(_module, _name):
        setattr(_module, _name, _substitute)
sys.modules["gi"] = None  # type: ignore[assignment]  # to import it raises ImportError
