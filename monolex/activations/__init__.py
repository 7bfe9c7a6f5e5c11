"""Stored activations: harvesting, writing, reading, streaming."""
