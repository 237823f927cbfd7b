"""One `get_config(variant)` file a run, over the defaults in `configs.defaults`."""
