"""The client's output and its completion."""
