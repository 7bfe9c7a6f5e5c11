"""What the one page of a run says."""
