"""The canvas: layouts, topologies and their segment tables, declared in numpy alone."""
