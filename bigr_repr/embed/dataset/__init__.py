"""The embedding data set on disk: its schema, plan, shards and ledger; reading and exporting it."""
