"""From settings to objects: registries, the data of a run, the model, the algorithm."""
