"""Boots Debian kernels in QEMU and runs tests there: `make vm-test`."""
