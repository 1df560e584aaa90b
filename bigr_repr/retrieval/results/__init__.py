"""Presents search results: pictures, a page, a montage, decoded codes."""
