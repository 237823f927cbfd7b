"""Noise schedule and targets of CogVideoX: pure functions."""
