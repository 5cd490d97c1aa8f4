"""What is on, what is remembered across restarts, and what is wrong."""
