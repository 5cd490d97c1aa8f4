"""What the tests share: child processes, cgroups, namespaces, traffic and the textbook datapath."""
