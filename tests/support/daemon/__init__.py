"""A daemon, its bus, its clients and its traffic, for tests."""
