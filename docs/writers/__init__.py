"""What is generated from the code, and committed so that a difference is seen."""
