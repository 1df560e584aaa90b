"""Training a tokenizer, a generator, and the data sets of codes between them."""
