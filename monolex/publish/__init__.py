"""Formats of other tools: features and explanations of a run out, and what others say of its features in."""
