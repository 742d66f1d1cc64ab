"""What runs on the server: it gathers nodes, runs the rounds and writes the run's files."""
