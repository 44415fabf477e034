"""The web console: static files, one more client of /api/v1. admin/console.py serves them."""
