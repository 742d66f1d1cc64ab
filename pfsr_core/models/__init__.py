"""The models: encoders, compressors, and what turns them into a next-item model."""
