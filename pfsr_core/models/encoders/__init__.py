"""Sequence encoders, one architecture a file."""
