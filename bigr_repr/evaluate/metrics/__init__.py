"""Measures that train nothing: intervals, rankings by label, distances of generated images."""
