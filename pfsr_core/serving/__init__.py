"""A node's store, the model that it serves, and recommendations out of it."""
