"""The benchmark: the same work over plain TCP, sockredird, a textbook sockmap and UNIX sockets.

`make bench` runs it; docs/benchmarks/README.md says how to read what it writes.
"""

import warnings

import sockredirctl  # noqa: F401  # provides what dbus-next lacks on newer Pythons

with warnings.catch_warnings():
    # dbus-next imports PyGObject where it is installed, which warns on Python 3.11
    warnings.simplefilter("ignore", ImportWarning)
    import dbus_next  # noqa: F401
