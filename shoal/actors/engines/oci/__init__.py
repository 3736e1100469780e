"""The direct engine: containers from layers of its own, without a daemon on the way."""
