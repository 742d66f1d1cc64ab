"""Tables of the results, made from the records of the experiments."""
