"""What a round is, whoever connects server and nodes: values, aggregation, evaluation."""
