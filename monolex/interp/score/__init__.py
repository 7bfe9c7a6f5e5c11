"""How well explanations predict."""
