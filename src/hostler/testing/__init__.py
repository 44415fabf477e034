"""Shipped fakes: what our tests and our users' tests stand on."""
