"""index -> plan -> reader -> decoder -> batch."""
