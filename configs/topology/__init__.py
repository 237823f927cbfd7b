"""One config a topology of the study; docs/topology.md shows them."""
