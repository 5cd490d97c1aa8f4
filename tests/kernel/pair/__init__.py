"""Which connections are accelerated: scope, addresses, and sockets that must not be."""
