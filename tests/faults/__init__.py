"""What the hub does when its parts die, stall or lie: the crash table, overspending, outages."""
