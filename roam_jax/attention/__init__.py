"""How attention runs under a declared topology."""
