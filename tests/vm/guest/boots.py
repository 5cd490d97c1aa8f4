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


@dataclass(frozen=True)
class Sequence:
    """The disk is kept from each boot to the next, and so is what was enabled."""

    boots: tuple[Boot, ...]
    # What the guest's root has besides
    packages: tuple[str, ...] = ()
    memory_mib: int = 2048
    timeout_s: float = 2400.0


# In this order: each leaves to the next what it needs
AFTER_REBOOT = ("services", "first_day", "restored", "removed")
PACKAGE = (
    Boot((Stage("typed", guest=("typed",)), Stage("enabled", guest=("before_reboot",)))),
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

CONTAINER_PACKAGES = (
    *("podman", "netavark", "aardvark-dns", "nftables", "crun", "catatonit"),
    *("docker.io", "docker-cli", "docker-compose"),
)
# Docker makes iptables drop what is forwarded, and what podman forwards with it: each has a boot.
WITHOUT_DOCKER = " ".join(
    f"systemd.mask={unit}" for unit in ("docker.service", "docker.socket", "containerd.service")
)
CONTAINERS = (
    Boot((Stage("podman", guest=("containers/test_podman*.py",)),), WITHOUT_DOCKER),
    Boot((Stage("docker", guest=("containers/test_docker*.py",)),)),
)

REBOOTS = 10
REBOOTED = tuple(
    Boot((Stage(f"reboot-{number + 1}", guest=("reboots/test_again.py",)),))
    for number in range(REBOOTS)
)
SEQUENCES = {
    "package": Sequence(PACKAGE),
    "containers": Sequence(
        CONTAINERS,
        packages=CONTAINER_PACKAGES,
        memory_mib=3072,
        timeout_s=4800.0,
    ),
    "reboots": Sequence(
        (Boot((Stage("set-up", guest=("before_reboot", "reboots/test_set_up.py")),)), *REBOOTED),
        timeout_s=4800.0,
    ),
}
