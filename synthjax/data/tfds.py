"""Rows from TensorFlow Datasets. Imports TensorFlow: only a source at `tfds:NAME` needs this."""

import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from synthjax import files

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's


def rows(name: str, split: str) -> Iterator[dict[str, Any]]:
  """Rows of `NAME` or `NAME#SPLIT`, bytes as text; TFDS_DATA_DIR says where the data lie.

  Raises:
    DataError: TensorFlow Datasets cannot give them.
  """
  name, _, own_split = name.partition("#")
  split = own_split or split
  try:
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    builder.download_and_prepare()
    found = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
  except Exception as e:
    # The rest of the message is TFDS's list of all data sets.
    reason = str(e).strip().splitlines()[0][:200]
    raise files.DataError(
      f"tfds:{name}: TensorFlow Datasets cannot give split {split!r} ({type(e).__name__}: "
      f"{reason}); prepare it where there is a network and set TFDS_DATA_DIR"
    ) from e
  for row in found:
    yield {key: _as_text(value) for key, value in row.items()}


def _as_text(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode()
  return value
