"""What the shards hold, compared with what config.json describes."""
