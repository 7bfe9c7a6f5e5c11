"""Everything that decomposes activations, behind one contract (``base``)."""
