"""What causes a feature, layer by layer."""
