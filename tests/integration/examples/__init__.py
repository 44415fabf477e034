"""Examples of the docs, run as they are."""
