"""Hostler: one endpoint for many models."""
