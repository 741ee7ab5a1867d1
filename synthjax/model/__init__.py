"""The decoder: one description of its parameters, a training forward pass and a decode path."""
