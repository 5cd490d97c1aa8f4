"""The probes of the running kernel, each of which is seen to fail, and what the host says."""
