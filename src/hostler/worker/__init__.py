"""One process that hosts an engine."""
