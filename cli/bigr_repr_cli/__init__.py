"""The `bigr-repr` command: parses options, calls the library, prints results; contains no logic of its own."""
