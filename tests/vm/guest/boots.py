"""What runs in a guest, boot by boot: read by the host, which boots, and by `boot` in the guest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One run of pytest; the tests are below the share, or below the checkout."""

    name: str
    guest: tuple[str, ...] = ()
    checkout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boot:
    stages: tuple[Stage, ...]
    parameters: str = ""  # of the kernel


# In this order: each leaves to the next what it needs
AFTER_REBOOT = ("services", "first_day", "restored", "removed")
# The disk is kept from each boot to the next, and so is what was enabled.
BOOTS = (
    Boot(
        (Stage("typed", guest=("typed", "test_*.py")), Stage("enabled", guest=("before_reboot",)))
    ),
    Boot(
        (
            Stage("rebooted", guest=tuple(f"after_reboot/test_{name}.py" for name in AFTER_REBOOT)),
            Stage("suites", checkout=("tests/kernel", "tests/bus/lifecycle")),
            Stage("enabled-again", guest=("before_reboot",)),
        ),
        parameters="lockdown=integrity",
    ),
    Boot((Stage("confidentiality", guest=("confidentiality",)),), "lockdown=confidentiality"),
)
