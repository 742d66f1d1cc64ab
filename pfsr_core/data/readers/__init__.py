"""Readers of file formats, each of which returns an interaction log."""
