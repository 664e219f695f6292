"""Refuse cheaply, then reserve."""
