"""Data on accelerated connections: every byte, in order, bounded."""
