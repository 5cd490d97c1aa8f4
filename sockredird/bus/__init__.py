"""D-Bus: the object on the bus, who may call it, calls out, events to subscribers, units.

Where PyGObject is installed, dbus_next would import it, which takes 4 MB, for a GLib main loop that
the daemon does not use. So it is told that PyGObject is missing.
"""

import sys

sys.modules["gi"] = None  # type: ignore[assignment]  # to import it raises ImportError
