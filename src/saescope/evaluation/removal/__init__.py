"""What removing features does to probes."""
