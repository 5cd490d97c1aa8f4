"""What programs see of a socket: over plain TCP, and over an accelerated connection."""
