"""Connections that go back to TCP: by themselves, or by Disable."""
