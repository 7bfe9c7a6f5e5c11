"""Activations of known features, and what dictionaries recover of them."""
