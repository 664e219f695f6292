"""Providers, models and rates: what this router serves, and what it costs."""
