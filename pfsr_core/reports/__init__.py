"""A run as a page, as tables and as pictures."""
