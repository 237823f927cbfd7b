"""Pictures of layouts, episodes and predictions."""
