"""A private D-Bus system bus with Debian's default policy and a policy of ours on top."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.checkout import REPOSITORY

SHIPPED_POLICY = REPOSITORY / "dbus" / "org.sockredir.conf"
PERMISSIVE_POLICY = """
<busconfig>
  <policy context="default">
    <allow own="org.sockredir"/>
    <allow send_destination="org.sockredir"/>
    <allow receive_sender="org.sockredir"/>
  </policy>
</busconfig>
"""
_SYSTEM_CONF = Path("/usr/share/dbus-1/system.conf")
# What would make the bus the machine's own: its user, its files, and the policies of its services.
_NOT_PRIVATE = re.compile(
    r"<(user|listen|servicehelper|pidfile|include|includedir)\b[^>]*>[^<]*</\1>"
    r"|<(fork|syslog|standard_system_servicedirs)/>"
    r"|<limit.*?</limit>"
)


def _configuration(socket: Path, policy: Path) -> str:
    text = re.sub(r"<!--.*?-->", "", _SYSTEM_CONF.read_text(), flags=re.DOTALL)
    text = _NOT_PRIVATE.sub("", text)
    ours = f"<listen>unix:path={socket}</listen><include>{policy}</include></busconfig>"
    return text.replace("</busconfig>", ours)


@contextmanager
def private_bus(policy: Path | str = SHIPPED_POLICY) -> Iterator[str]:
    """Address of a bus; every uid may connect. `policy` is a file, or the text of one."""
    with tempfile.TemporaryDirectory(prefix="srt-bus-") as name, running(Path(name), policy):
        yield address(Path(name))


def address(directory: Path) -> str:
    return f"unix:path={directory / 'bus'}"


@contextmanager
def running(directory: Path, policy: Path | str = SHIPPED_POLICY) -> Iterator[None]:
    """A bus with its socket in `directory` is there inside the with block."""
    directory.chmod(0o755)  # unprivileged clients come here too
    if isinstance(policy, str):
        (directory / "policy.conf").write_text(policy)
        policy = directory / "policy.conf"
    config = directory / "bus.conf"
    config.write_text(_configuration(directory / "bus", policy))
    with (directory / "log").open("w") as log:
        daemon = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert daemon.stdout is not None
    try:
        # the line comes when the bus listens; nothing comes if it refuses the policy
        assert daemon.stdout.readline(), (directory / "log").read_text()
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        daemon.stdout.close()
