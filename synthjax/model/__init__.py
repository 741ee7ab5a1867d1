"""The decoder: one description of its parameters, a forward pass for training, a decode path."""
