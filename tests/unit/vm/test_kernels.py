"""What KERNEL= and ARCH= of make vm-test choose."""

from __future__ import annotations

from vm import kernels


def test_all_are_those_of_stable_releases() -> None:
    assert [k.title for k in kernels.chosen("all", "amd64")] == ["6.1", "6.12", "7.3"]
    titles = [k.title for k in kernels.chosen("all", "arm64")]
    assert titles == ["6.1 arm64", "6.12 arm64", "7.3 arm64"]


def test_a_suite_has_a_kernel() -> None:
    (kernel,) = kernels.chosen("forky", "amd64")
    assert (kernel.title, kernel.root.suite) == ("forky", "forky")
