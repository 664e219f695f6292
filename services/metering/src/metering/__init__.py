"""Reserves and settles every call once; ledger, statistics, usage events."""
