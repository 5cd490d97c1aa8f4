"""Writes docs/first-day.md from what a guest typed; `make first-day` runs it."""

from __future__ import annotations

import sys

from vm.document import BUILD, REPOSITORY

KERNEL = "6.12"  # of Debian 13
DOCUMENT = REPOSITORY / "docs" / "first-day.md"
INTRODUCTION = """\
# The first day

Made by `make first-day` from what tests/vm/guest typed in a virtual machine with Debian 13, in the
last `make vm-test KERNEL=6.12`; do not edit. `#` is the prompt of root, `$` that of another user.
"""


def main() -> None:
    typed = BUILD / f"guest-{KERNEL}" / "results" / "first-day.md"
    DOCUMENT.write_text(INTRODUCTION + typed.read_text())
    sys.stdout.write(f"{DOCUMENT}\n")


if __name__ == "__main__":
    main()
