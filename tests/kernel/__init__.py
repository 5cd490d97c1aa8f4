"""Real BPF programs over real connections, in a private cgroup and bpffs; as root.

`pair`, `carry`, `leave` and `learn` follow the life of a connection, as bpf/ does; the other
directories are packages of the product.
"""
