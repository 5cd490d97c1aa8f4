"""Records, objects and types, read and written as data."""
