"""The fault campaign: every process of a hub under load is killed, again and again; then its books are checked."""
