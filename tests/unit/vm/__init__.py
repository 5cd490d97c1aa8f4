"""What runs in guests, as far as it can be seen without one."""
