"""sockredirctl: thin client of sockredird's D-Bus interface."""

import asyncio
import inspect
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _decorate_nothing(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator as it is: dbus_next marks methods with it, and the client has none."""
    return decorator


# dbus-next 0.2.3, its last release, uses names that newer Pythons do not have. sockredird/bus has
# the same table, since the client imports nothing from there.
_MISSING_NAMES: tuple[tuple[ModuleType, str, Callable[..., Any]], ...] = (
    (typing, "no_type_check_decorator", _decorate_nothing),  # removed in Python 3.15
    (asyncio, "iscoroutinefunction", inspect.iscoroutinefunction),  # deprecated, to go in 3.16
)

for _module, _name, _substitute in _MISSING_NAMES:
    if not hasattr(_module, _name):
        setattr(_module, _name, _substitute)
