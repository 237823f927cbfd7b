"""From a config to a `Task` that the trainer can run."""
