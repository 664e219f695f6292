"""What the `hub` command can do, by subject."""
