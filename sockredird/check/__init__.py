"""Whether this kernel and this host are fit for acceleration, and what they would gain."""
