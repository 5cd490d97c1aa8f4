"""The daemon process: its start, its end, its bus, what it costs, its scrape endpoint."""
