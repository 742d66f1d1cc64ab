"""Benchmarks: times of this code against other implementations. Not in the app bundle."""
