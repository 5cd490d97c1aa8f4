"""D-Bus: the object on the bus, who may call it, calls out, events to subscribers, units.

dbus_next would bring PyGObject along where it is installed, 4 MB of it. It does without, as it does
where PyGObject is not installed; only its GLib main loop needs it.
"""

import sys

sys.modules["gi"] = None  # type: ignore[assignment]  # what is None there raises ImportError
