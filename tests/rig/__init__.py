"""What tests that need real servers and real processes stand on."""
