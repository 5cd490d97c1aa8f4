"""sockredirctl: thin client of sockredird's D-Bus interface."""
