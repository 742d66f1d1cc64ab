"""Federated algorithms, each a value built over a task, with its settings beside it."""
