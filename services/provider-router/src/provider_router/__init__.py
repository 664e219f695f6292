"""Chooses a provider, translates, calls upstream, publishes the outcome."""
