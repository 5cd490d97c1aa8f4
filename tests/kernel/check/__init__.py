"""What check finds out about the host."""
