"""Where item vectors come from, and where they live."""
