"""Presents results: tables, pages, plots, pictures of features."""
