"""Seeded fuzzers: each makes a case from a random generator and checks it against a slow, plain reading."""
