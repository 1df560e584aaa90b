"""`bigr-repr index …`, `search`, `near-duplicates`, `codes` and `decode`."""
