"""Simulated bodies, scripted experts and software rendering."""
