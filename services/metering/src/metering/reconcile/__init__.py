"""Do the books agree with each other, with the bus and with what was closed; and what repairs them."""
