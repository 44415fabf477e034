"""The command line: one more client of /api/v1."""
