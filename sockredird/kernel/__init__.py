"""What the kernel offers: libbpf, netlink, sock_diag, cgroupfs, mounts, capabilities.

It knows nothing of sockredir.
"""
