"""Looped blocks, region encoders and action heads."""
