"""Metrics without training: intervals, rankings by label, distances of generated images."""
