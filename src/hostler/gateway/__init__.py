"""Data plane: answers users."""
