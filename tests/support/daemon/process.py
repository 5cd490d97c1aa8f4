"""The daemon as a child process, with what it sends by sd_notify(3) and to its stderr."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.checkout import REPOSITORY
from support.daemon.notify import NotifySocket
from support.emulated import PATIENCE

PYTHON = "/usr/bin/python3"
# dbus-next 0.2.3 predates Python 3.13, and 3.14, which warns of asyncio.iscoroutinefunction
WARNINGS = (
    "-Werror::DeprecationWarning",
    "-Wignore::DeprecationWarning:dbus_next.service",
    "-Wignore::DeprecationWarning:dbus_next.aio.message_bus",
)
COMMAND = (PYTHON, "-X", "faulthandler", *WARNINGS, "-m", "sockredird")
TIMEOUT_S = 30.0 * PATIENCE

Tables = Mapping[str, Mapping[str, Any]]


def toml(tables: Tables) -> str:
    """TOML of tables; those named '' are the top level."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{_text(key)} = {_value(item)}" for key, item in table.items()]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    # JSON's notation, but that TOML wants DEL escaped and does not know surrogate pairs
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(item: Any) -> str:
    if isinstance(item, str):
        return _text(item)
    if isinstance(item, list):
        return f"[{', '.join(map(_value, item))}]"
    if isinstance(item, dict):
        return f"{{{', '.join(f'{_text(k)} = {_value(v)}' for k, v in item.items())}}}"
    if isinstance(item, float):
        return repr(item)  # nan and inf are TOML's words, too
    return json.dumps(item)


def environment(address: str, **more: str) -> dict[str, str]:
    """For a program run from the checkout, with a private bus as its system bus."""
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return {
        **kept,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DBUS_SYSTEM_BUS_ADDRESS": address,
        **more,
    }


class DaemonProcess:
    """One life of the daemon: start(), then stop() or kill()."""

    def __init__(
        self, config: Path, address: str, log: Path, *, under: Sequence[str] = (), **more: str
    ) -> None:
        """`under` is a command that runs the daemon's in its place, as setpriv(1) does."""
        self.log = log
        self.notify = NotifySocket()
        with log.open("w") as stderr:
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                [*under, *COMMAND, "--config", str(config)],
                env=environment(address, NOTIFY_SOCKET=self.notify.address, **more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._pidfd = os.pidfd_open(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def await_message(self, wanted: str, timeout: float = TIMEOUT_S) -> str:
        """The next sd_notify message not awaited yet that has `wanted` as one of its lines."""
        found = self.notify.wait_for(wanted, timeout, self._pidfd)
        assert found is not None, f"no {wanted} but {self.notify.messages}: {self.stderr}"
        return found

    @property
    def messages(self) -> list[str]:
        """All that it has said to sd_notify."""
        self.notify.hear_all()
        return self.notify.messages

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Its exit status."""
        return self._process.wait(timeout)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) << 10

    @property
    def cpu_seconds(self) -> float:
        """That all its threads have used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def kill_after(self, seconds: float) -> None:
        """SIGKILL at a moment that nothing announces."""
        time.sleep(seconds)
        self.kill()

    def close(self) -> None:
        """Whatever a test left running ends here; stderr has the stacks of what does not end."""
        try:
            if self.running:
                self.signal(signal.SIGCONT)
                self.stop()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)
            self.wait()
            raise AssertionError(f"does not end on SIGTERM: {self.stderr}") from None
        finally:
            self.notify.close()
            os.close(self._pidfd)
