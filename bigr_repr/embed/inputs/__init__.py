"""What to embed: sources found, listed, fetched, compared with what is there already."""
