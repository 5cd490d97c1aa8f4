"""Statistics, rounds and tables of the benchmark."""
