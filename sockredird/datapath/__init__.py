"""One generation of pinned objects, from creation to removal."""
