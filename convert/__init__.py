"""Weight conversion: `python -m convert VERB`. The only place besides tests that imports torch."""
