"""Scheduled duties, by events and RPC only."""
