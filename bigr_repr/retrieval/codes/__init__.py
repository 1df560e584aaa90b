"""Packed codes: what makes them of features, where they come from, their grid, their files."""
