"""Packed codes: how they are made from features, their provenance, token grid and files."""
