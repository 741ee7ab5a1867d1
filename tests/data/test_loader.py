"""The global order of rows: the same whoever reads it, epoch by epoch, alone and in a mixture."""

import numpy as np
import pytest

from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, documents, loader, sources, tokenizers

DOCUMENTS = 300


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
  folder = tmp_path_factory.mktemp("loader") / "c"
  data, world = schema.Data(seq_len=64), World()
  tokenizer = tokenizers.load(data.tokenizer, world)
  corpus = sources.Corpus(schema.Source(count=DOCUMENTS), data, world, tokenizer)
  cache.cache(corpus, "train", folder, say=lambda _: None)
  return documents.CachedDocuments(folder)


def _order(cached, seed=0):
  return loader.PackedDocuments(cached, 64, seed)


def _documents(order, first, last):
  """The documents of the rows first, first + 1, ... last - 1."""
  return [i for index in range(first, last) for i in order.ids(index)]


def test_every_epoch_holds_every_document_once_in_another_order(cached):
  order = _order(cached, seed=3)
  one, two = order.count(1), order.count(2)
  first, second = _documents(order, 0, one), _documents(order, one, two)
  assert sorted(first) == sorted(second) == list(range(DOCUMENTS))
  assert first != second
  assert _documents(_order(cached, seed=4), 0, one) != first


def test_the_rows_of_a_batch_do_not_depend_on_hosts_or_on_interruptions(cached):
  """One process for 3 batches of 8, then two for 5 of 4, then four for 2 of 16: one sequence."""
  read, position = [], 0
  for size, processes, count in ((8, 1, 3), (4, 2, 5), (16, 4, 2)):
    of_process = []
    for process in range(processes):
      share = range(process * size // processes, (process + 1) * size // processes)
      batches = loader.batches(_order(cached), size, count, position, share)
      of_process.append([batch["tokens"] for batch in batches])
    for parts in zip(*of_process, strict=True):
      read += parts
    position += size * count
  expected = _order(cached).read(list(range(position)))["tokens"]
  np.testing.assert_array_equal(np.concatenate(read), expected)


def test_a_late_epoch_is_planned_without_those_before_it(cached):
  order, planned = _order(cached), []
  plan = order.packing.plan

  def counted(random):
    planned.append(random)
    return plan(random)

  order.packing.plan = counted
  late = 1000 * order.count(1) + 3
  assert order.locate(late) == (1000, 3)
  assert order.ids(late)
  assert len(planned) == 1


@pytest.mark.parametrize("rates", [(1, 1), (0.3, 0.7), (2, 3, 5), (0.01, 0.99)])
def test_every_prefix_of_a_mixture_holds_the_shares_asked_for_to_within_a_row(cached, rates):
  parts = [_order(cached, seed) for seed in range(len(rates))]
  mixture = loader.Mixture(parts, rates, 500)
  part = np.array([int(mixture.ids(i)[0].split(":")[0]) for i in range(500)])
  shares = np.array(rates) / sum(rates)
  for rows in (1, 7, 100, 500):
    counts = np.bincount(part[:rows], minlength=len(rates))
    assert np.all(np.abs(counts - shares * rows) <= 1)
  np.testing.assert_allclose(mixture.token_shares(500), shares, atol=0.01)


def test_a_longer_mixture_begins_with_the_shorter_one(cached):
  parts = [_order(cached, seed) for seed in (0, 1)]
  short, long = loader.Mixture(parts, (1, 2), 60), loader.Mixture(parts, (1, 2), 600)
  assert [short.ids(i) for i in range(60)] == [long.ids(i) for i in range(60)]
  indices = [0, 1, 2]
  np.testing.assert_array_equal(short.read(indices)["tokens"], long.read(indices)["tokens"])


def test_a_mixture_reads_each_part_in_its_own_order(cached):
  parts = [_order(cached, seed) for seed in (0, 1)]
  mixture = loader.Mixture(parts, (1, 2), 60)
  rows_of_second = 0
  for index in range(60):
    ids = mixture.ids(index)
    if ids[0].startswith("1:"):
      assert ids == [f"1:{i}" for i in parts[1].ids(rows_of_second)]
      rows_of_second += 1
  assert rows_of_second == 40
