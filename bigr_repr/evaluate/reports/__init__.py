"""Results to look at: tables, pages, plots, pictures of features."""
