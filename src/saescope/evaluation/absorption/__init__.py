"""Absorption and splitting: where one concept is shared out among features."""
