"""Against a real Ray cluster, on machines of the test's own network."""
