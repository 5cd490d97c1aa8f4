"""What the package installs besides programs."""
