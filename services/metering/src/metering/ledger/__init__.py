"""The built-in ledger: what accounts were given, what became of it, and telling when it runs out."""
