"""Generations: created, adopted, refused."""
