"""The hub command: everything on one machine, and the operator's tool."""
