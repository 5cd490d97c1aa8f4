"""The documentation agrees with the sources and with the recorded results."""
