"""From tasks to rows: tokenizers, seqio tasks, the Beam cache, packing and the grain loader."""
