"""CogVideoX in Flax: transformer, VAE, weights, and the graft on them."""
