"""What to embed: finding, listing and fetching inputs, and comparing them with earlier ones."""
