"""Parts of the daemon process that need no daemon."""
