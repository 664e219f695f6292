"""What every process needs: settings, bus, pool, telemetry, health, shutdown."""
