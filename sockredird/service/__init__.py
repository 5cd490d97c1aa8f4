"""The process: event loop, signals, systemd, the scrape endpoint."""
