"""Training: state, step, loop, checkpoints, metrics. Imports neither seqio nor TensorFlow."""
