"""Explanations of features."""
