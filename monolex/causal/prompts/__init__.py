"""Prompts in pairs, and what a model does on them."""
