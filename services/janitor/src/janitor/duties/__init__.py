"""Duties: each safe to repeat, each acting by events and RPC only."""
