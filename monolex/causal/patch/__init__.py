"""Features of a prompt swapped for a donor's."""
