"""Which candidate is asked first, who is left alone for a while, and when the next one is tried."""
