"""`monolex init`: a run.toml that fits a model, a text and a number of minutes, with a comment on every line."""
