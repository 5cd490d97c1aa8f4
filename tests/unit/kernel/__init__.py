"""Parsers of what the kernel writes to files."""
