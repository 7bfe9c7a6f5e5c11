"""Language models: where their sites are, reading and editing them."""
