"""What is in scope, and what is not: addresses, units, cgroups; and that nobody else gets in."""
