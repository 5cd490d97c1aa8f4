"""Compiled programs, kept and loaded again."""
