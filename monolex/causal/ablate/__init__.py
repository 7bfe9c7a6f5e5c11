"""A feature taken away where it is active."""
