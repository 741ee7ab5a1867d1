"""Verification: extracting a final answer and comparing it with the known one.

Model text is data, never code. `extract.extract` finds the answer and `pool.Pool.compare` judges
it: `fast` settles what is plain, `symbolic` the rest, in a worker process.
"""
