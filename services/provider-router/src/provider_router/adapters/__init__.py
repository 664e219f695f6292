"""One provider's wire format each: pure, no socket, no clock, no secret."""
