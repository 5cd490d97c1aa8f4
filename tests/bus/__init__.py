"""The daemon and its client as their users meet them: over a bus, in a private cgroup and bpffs.

A package, so that its conftest.py and modules do not take the names of those of other directories.
"""
