"""Imported before dbus_next: that would bring PyGObject along where it is installed, 4 MB of it.

It does without, as it does where PyGObject is not installed; only its GLib main loop needs it.
"""

import sys

sys.modules["gi"] = None  # type: ignore[assignment]  # what is None there raises ImportError
