"""The client against a daemon: output, exit statuses, terminals."""
