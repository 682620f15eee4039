"""How a run starts: on one host, on many, as a demonstration, as a sweep."""
