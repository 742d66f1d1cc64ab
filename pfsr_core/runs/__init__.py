"""What a run writes and reads: records, models, item maps; and runs without a network."""
