"""The index: exact and approximate Hamming search, and its folder."""
