"""Wires the gateway, top to bottom; the stack closes it bottom to top."""
