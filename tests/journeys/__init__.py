"""What users see: whole journeys through real processes, with the official SDKs and on the bare wire."""
