"""sockredird: lets two programs on one host that talk TCP bypass the network stack."""

__version__ = "0.1.0"
