"""libbpf, netlink, sock_diag, cgroupfs, mounts, capabilities: knows nothing of sockredir."""
