"""Requests and replies, by the service that answers them."""
