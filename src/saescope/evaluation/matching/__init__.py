"""Dictionaries against each other: which features are the same, and which are not."""
