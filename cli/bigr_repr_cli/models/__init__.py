"""`bigr-repr models …`."""
