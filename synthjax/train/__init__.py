"""Training: state, optimizer, step, loop, checkpoints, metrics. Imports neither seqio nor TensorFlow."""
