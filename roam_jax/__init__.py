"""roam_jax: looped, topology-structured video-action diffusion in JAX."""

__version__ = "0.1.0"
