"""sockredird: the daemon's command line."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import sys
from pathlib import Path
from typing import Any

from sockredird import __version__, config
from sockredird.datapath.inventory import check_bpffs
from sockredird.errors import (
    AccessDenied,
    AlreadyRunning,
    BusUnavailable,
    InvalidConfig,
    SockredirError,
    UnsupportedKernel,
    printable,
)
from sockredird.kernel import capabilities
from sockredird.service import once
from sockredird.service.daemon import Daemon

# sysexits(3): systemd does not restart after 77 and 78, which need a person
EXIT_STATUS: dict[type[SockredirError], int] = {
    AccessDenied: os.EX_NOPERM,
    InvalidConfig: os.EX_CONFIG,
    UnsupportedKernel: os.EX_CONFIG,
    BusUnavailable: os.EX_UNAVAILABLE,
    AlreadyRunning: os.EX_UNAVAILABLE,
}


class _Formatter(logging.Formatter):
    """Puts a record on one line, whatever is in it, except for the traceback of a defect."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:
        return "\n".join(map(printable, super().formatException(exc_info).splitlines()))


class _JournalFormatter(_Formatter):
    """sd-daemon(3) priority prefix; the journal keeps time and name itself."""

    def format(self, record: logging.LogRecord) -> str:
        priority = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}.get(record.levelno, 3)
        return f"<{priority}>{super().format(record)}"


def _to_journal() -> bool:
    """Whether standard error is the journal's, not only that of our parents: systemd.exec(5)."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def _set_up_logging(level: str, *, command: bool) -> None:
    """`command`: somebody typed it and waits for what it says."""
    handler = logging.StreamHandler(sys.stderr)
    if _to_journal():
        handler.setFormatter(_JournalFormatter("%(message)s"))
    elif command:
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler.setFormatter(
            _Formatter("%(asctime)s sockredird[%(process)d] %(levelname)s %(message)s")
        )
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sockredird",
        description="Accelerates TCP between programs on this host; controlled by sockredirctl.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration file (default: {config.DEFAULT_PATH}, if it exists)",
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="how severe a message has to be to be logged (default: info)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check-config",
        type=Path,
        nargs="?",
        const=config.DEFAULT_PATH,
        metavar="FILE",
        help="check the configuration file, say what is wrong with it, and exit",
    )
    instead.add_argument(
        "--disable",
        action="store_true",
        help="while no daemon runs: end acceleration that is pinned or remembered, and exit",
    )
    instead.add_argument(
        "--restore",
        action="store_true",
        help="early in the boot: restore acceleration if it was enabled, and exit",
    )
    parser.add_argument("--version", action="version", version=f"sockredird {__version__}")
    return parser


async def _serve(settings: config.Config, path: Path, required: bool) -> None:
    await Daemon(settings, path, required).run()


def _run(file: Path | None) -> None:
    path = file or config.DEFAULT_PATH
    settings = config.load(path, required=file is not None)
    _require_root()
    check_bpffs(Path(settings.paths.bpffs))
    asyncio.run(_serve(settings, path, file is not None))


def _in_words(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return (
            "the kernel does not permit it: sockredird needs the capabilities "
            f"{', '.join(capabilities.NEEDED)}, and a kernel that is not locked down"
        )
    return error.strerror or str(error)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise AccessDenied(f"sockredird needs root ({', '.join(capabilities.NEEDED)}): try sudo")


def main() -> int:
    arguments = _parser().parse_args()
    command = arguments.check_config is not None or arguments.disable
    _set_up_logging(arguments.log_level, command=command)
    try:
        if arguments.check_config is not None:
            file = arguments.check_config
            config.load(file, required=file != config.DEFAULT_PATH)
        elif arguments.disable:
            _require_root()
            once.disable(config.load_paths(arguments.config or config.DEFAULT_PATH))
        elif arguments.restore:
            _require_root()
            file = arguments.config or config.DEFAULT_PATH
            once.restore(config.load(file, required=arguments.config is not None))
        else:
            _run(arguments.config)
    except SockredirError as error:
        logging.getLogger("sockredird").error("%s", error)
        return next((s for kind, s in EXIT_STATUS.items() if isinstance(error, kind)), 1)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        logging.getLogger("sockredird").error("cannot start: %s%s", what, _in_words(error))
        return os.EX_NOPERM if error.errno == errno.EPERM else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
