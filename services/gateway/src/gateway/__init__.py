"""HTTP surface: authenticates, admits, dispatches, streams."""
