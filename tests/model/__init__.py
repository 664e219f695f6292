"""The money protocol as an explicit-state model: every interleaving of crashes, losses and repeats, no server."""
