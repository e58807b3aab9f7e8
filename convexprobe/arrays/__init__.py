"""Numbers on any array library, device and rank."""
