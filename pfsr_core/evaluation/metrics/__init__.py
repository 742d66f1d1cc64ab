"""Ranking metrics, one a file; the list of those that are computed is in ``registry``."""
