"""Fragments of the corpus that explain a feature, and those that score it."""
