"""Language models that are asked."""
