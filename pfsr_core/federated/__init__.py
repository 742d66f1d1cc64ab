"""A round, independent of the transport: values, aggregation, evaluation."""
