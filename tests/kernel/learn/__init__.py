"""Listeners that are left to TCP because of what was learned about them."""
