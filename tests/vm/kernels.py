"""Which Debian kernels are booted, and the root each of them comes with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vm.architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Root:
    suite: str
    # Suites that only bring a kernel, installed beside the suite's own
    kernel_suites: tuple[str, ...] = ()
    # Beside those that each root has
    packages: tuple[str, ...] = ()
    # What this suite lacks of all that is asked for: tests that need it are skipped
    lacks: tuple[str, ...] = ()
    architecture: Architecture = ARCHITECTURES["amd64"]


@dataclass(frozen=True)
class Kernel:
    name: str  # as in KERNEL=...
    root: Root
    # How the version in its image's file name starts; of testing and unstable, it is any
    version: str = ""

    @property
    def title(self) -> str:
        """In documents: the architecture is named where it is not amd64."""
        architecture = self.root.architecture.name
        return self.name if architecture == "amd64" else f"{self.name} {architecture}"

    def run_name(self, boots: str = "package") -> str:
        """What results of a sequence of boots are called: by the kernel alone for the package's."""
        kernel = self.title.replace(" ", "-")
        return kernel if boots == "package" else f"{kernel}-{boots}"


# It has the client of Docker in docker.io, and a docker-compose that is no plugin of it.
BOOKWORM = Root("bookworm", lacks=("docker-cli", "docker-compose"))
TRIXIE = Root("trixie", kernel_suites=("trixie-backports",))
# Of testing and unstable, with a Python that is not the default yet
FORKY = Root("forky", packages=("python3.15",), lacks=("python3-fusepy",))
SID = Root("sid", packages=("python3.15",), lacks=("python3-fusepy",))

# KERNEL=all
STABLE = (
    Kernel("6.1", BOOKWORM, "6.1."),
    Kernel("6.12", TRIXIE, "6.12."),
    Kernel("7.3", TRIXIE, "7.3."),
)
# In the order of docs/kernels.md
KERNELS = tuple(
    replace(kernel, root=replace(kernel.root, architecture=architecture))
    for architecture in ARCHITECTURES.values()
    for kernel in (*STABLE, Kernel("forky", FORKY), Kernel("sid", SID))
)
NAMES = tuple(dict.fromkeys(kernel.name for kernel in KERNELS))


def chosen(name: str, architecture: str) -> list[Kernel]:
    """What KERNEL=... and ARCH=... ask for."""
    names = [kernel.name for kernel in STABLE] if name == "all" else [name]
    return [k for k in KERNELS if k.name in names and k.root.architecture.name == architecture]
