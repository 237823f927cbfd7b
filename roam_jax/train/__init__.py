"""The trainer: sharding, optimizer, checkpoints, the loop. It never imports a model."""
