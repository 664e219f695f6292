"""From the credential of a request to the principal that it stands for."""
