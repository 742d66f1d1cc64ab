"""Seeded synthetic interaction logs."""
