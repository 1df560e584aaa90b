"""The `bigr-repr` command. Parses, calls the library, prints; knows nothing that the library does not."""
