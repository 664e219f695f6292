"""Seeded bugs: each is a patch on a copy of the tree, and each must be caught by the tests that it names."""
