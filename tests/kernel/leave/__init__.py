"""Connections that go back to TCP: by themselves, and because they are told to."""
