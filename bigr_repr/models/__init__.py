"""The networks: tokenizer, transformer, transcoder, and the generator that joins the last two."""
