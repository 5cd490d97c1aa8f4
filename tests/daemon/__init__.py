"""The daemon and its client as their users meet them: over a bus, in a private cgroup and bpffs.

A package, so that its conftest.py and modules do not take the names of those of other directories.
"""

import warnings

with warnings.catch_warnings():
    # dbus-next imports PyGObject where it is installed, which warns on Python 3.11
    warnings.simplefilter("ignore", ImportWarning)
    import dbus_next  # noqa: F401
