"""What an explanation predicts."""
