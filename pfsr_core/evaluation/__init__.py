"""Ranking metrics as mergeable sums, evaluation of one client, uncertainty, and baselines."""
