"""Robot episodes: reading, windows, statistics, batches."""
