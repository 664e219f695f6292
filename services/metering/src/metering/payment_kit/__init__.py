"""Payment Kit as the place where accounts are charged: meter events out, balances in."""
