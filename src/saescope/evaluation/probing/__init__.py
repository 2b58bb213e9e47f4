"""Probes for true labels, and where the labels come from."""
