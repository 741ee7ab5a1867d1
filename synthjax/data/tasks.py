"""Sources as seqio tasks. Imports seqio and TensorFlow: only what caches data imports this."""

import pathlib
from collections.abc import Iterable, Iterator

import seqio
import tensorflow as tf

from synthjax import files
from synthjax.data import sources
from synthjax.data.sources import Corpus
from synthjax.data.tokenizers import Tokenizer

tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's

_COLUMNS = ("id", "inputs", "targets", "drop")


class Vocabulary(seqio.Vocabulary):
  """A tokenizer as seqio sees it."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    super().__init__(extra_ids=0)

  @property
  def eos_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def unk_id(self) -> int | None:
    return None

  @property
  def pad_id(self) -> int:
    return self._tokenizer.pad_id

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.size

  def _encode(self, s: str) -> list[int]:
    return self._tokenizer.encode(s)

  def _decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s):
    def encode(text: bytes):
      # A list would become int64, and an empty one float.
      return tf.constant(self._encode(text.decode()), tf.int32).numpy()

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids):
    def decode(ids) -> bytes:
      return self._decode(ids.tolist()).encode()

    return tf.numpy_function(decode, [ids], tf.string, stateful=False)

  # seqio asks whether the vocabularies of two features are one.
  def __eq__(self, other) -> bool:
    if not isinstance(other, Vocabulary):
      return False
    return self._tokenizer.fingerprint == other._tokenizer.fingerprint

  def __hash__(self) -> int:
    return hash(self._tokenizer.fingerprint)


class _Source(seqio.DataSource):
  """A corpus as seqio reads it: a shard per file, rows of (id, inputs, targets, drop)."""

  def __init__(self, corpus: Corpus, errors: pathlib.Path):
    self._corpus = corpus
    self._errors = errors
    super().__init__(splits=("train", "test"))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> list[str]:
    return sources.shards(self._corpus.source, self._corpus.data, split)

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused):
    """As seqio asks; the order is that of the file: the loader shuffles, by index."""
    names = self.list_shards(split)
    if shard_info:
      names = names[shard_info.index :: shard_info.num_shards]

    def rows() -> Iterator[dict[str, str]]:
      try:
        for name in names:
          yield from self._rows(split, name)
      except files.DataError as e:
        # TensorFlow would wrap it in a page of traces; whoever runs the pipeline finds it here.
        files.write_json(self._errors, str(e))
        raise

    columns = {name: tf.TensorSpec((), tf.string) for name in _COLUMNS}
    return tf.data.Dataset.from_generator(rows, output_signature=columns)

  def _rows(self, split: str, shard: str) -> Iterator[dict[str, str]]:
    for example in sources.read(self._corpus.source, self._corpus.world, split, shard):
      drop = example.drop
      if example.id in self._corpus.left_out:
        drop = "repeats an evaluation problem"
      yield {
        "id": example.id,
        "inputs": example.inputs,
        "targets": example.targets,
        "drop": drop,
      }


def register(name: str, corpus: Corpus, errors: pathlib.Path) -> seqio.Task:
  """A corpus as the seqio task `name`, replacing one of that name; splits `train` and `test`.

  Bad input is written to `errors`. Documents left out of the corpus are dropped, with the reason.
  """
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  # The cache ends each document itself: a text that is split ends once, in its last piece.
  feature = seqio.Feature(Vocabulary(corpus.tokenizer), add_eos=False, dtype=tf.int32)
  return seqio.TaskRegistry.add(
    name,
    source=_Source(corpus, errors),
    preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
    output_features={"inputs": feature, "targets": feature},
  )
