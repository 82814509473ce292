"""From manifests and shards to batches."""
