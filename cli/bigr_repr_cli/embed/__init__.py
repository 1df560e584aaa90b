"""`bigr-repr embed` and `bigr-repr embed export`."""
