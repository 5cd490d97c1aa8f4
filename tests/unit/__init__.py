"""Tests that need no kernel feature and no root; one directory for each package of the product."""
