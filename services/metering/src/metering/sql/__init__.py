"""Schema `metering`: its migrations, and the only module that speaks SQL of the turn."""
