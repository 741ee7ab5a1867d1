import numpy as np
import pytest

from synthjax.config import schema
from synthjax.config.worlds import World
from synthjax.data import cache, documents, loader, sources, tokenizers


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
  folder = tmp_path_factory.mktemp("loader") / "c"
  data, world = schema.Data(seq_len=64), World()
  tokenizer = tokenizers.load(data.tokenizer, world)
  corpus = sources.Corpus(schema.Source(count=300), data, world, tokenizer)
  cache.cache(corpus, "train", folder, say=lambda _: None)
  return documents.CachedDocuments(folder)


def _ids(rows, first, last):
  return [i for index in range(first, last) for i in rows.ids(index)]


def test_every_epoch_holds_every_document_once_in_another_order(cached):
  rows = loader.PackedDocuments(cached, 64, seed=3)
  ends = [0, rows.count(1), rows.count(2)]
  epochs = [_ids(rows, first, last) for first, last in zip(ends, ends[1:])]
  assert [sorted(epoch) for epoch in epochs] == [list(range(300))] * 2 and epochs[0] != epochs[1]
  assert _ids(loader.PackedDocuments(cached, 64, seed=4), 0, ends[1]) != epochs[0]


def test_the_rows_of_a_batch_do_not_depend_on_hosts_or_on_how_the_run_was_cut(cached):
  """One process for 3 batches of 8, then two processes with 5 batches of 4, then four with batches of 16: one sequence."""
  rows = loader.PackedDocuments(cached, 64, seed=0)
  found, position = [], 0
  for size, processes, count in ((8, 1, 3), (4, 2, 5), (16, 4, 2)):
    parts = []
    for process in range(processes):
      share = range(process * size // processes, (process + 1) * size // processes)
      parts.append(
        list(
          loader.batches(loader.PackedDocuments(cached, 64, seed=0), size, count, position, share)
        )
      )
    found += [part[k]["tokens"] for k in range(count) for part in parts]
    position += size * count
  expected = rows.read(list(range(position)))["tokens"]
  np.testing.assert_array_equal(np.concatenate(found), expected)


def test_a_late_epoch_is_planned_without_those_before_it(cached):
  rows, planned = loader.PackedDocuments(cached, 64, seed=0), []
  plan = rows.packing.plan
  rows.packing.plan = lambda random: planned.append(random) or plan(random)
  late = 1000 * rows.count(1) + 3
  assert rows.locate(late) == (1000, 3)
  assert rows.ids(late) and len(planned) == 1


@pytest.mark.parametrize("rates", [(1, 1), (0.3, 0.7), (2, 3, 5), (0.01, 0.99)])
def test_every_prefix_of_a_mixture_holds_the_shares_asked_for_to_within_a_row(cached, rates):
  parts = [loader.PackedDocuments(cached, 64, seed) for seed in range(len(rates))]
  mixture = loader.Mixture(parts, rates, 500)
  part = np.array([int(mixture.ids(i)[0].split(":")[0]) for i in range(500)])
  shares = np.array(rates) / sum(rates)
  for n in (1, 7, 100, 500):
    assert np.all(np.abs(np.bincount(part[:n], minlength=len(rates)) - shares * n) <= 1)
  np.testing.assert_allclose(mixture.token_shares(500), shares, atol=0.01)


def test_a_longer_mixture_begins_with_the_shorter_one_and_reads_its_parts_in_their_order(cached):
  parts = [loader.PackedDocuments(cached, 64, seed) for seed in (0, 1)]
  short, long = loader.Mixture(parts, (1, 2), 60), loader.Mixture(parts, (1, 2), 600)
  assert [short.ids(i) for i in range(60)] == [long.ids(i) for i in range(60)]
  second = [ids for i in range(60) if (ids := short.ids(i))[0].startswith("1:")]
  assert second == [[f"1:{i}" for i in parts[1].ids(k)] for k in range(len(second))]
  np.testing.assert_array_equal(short.read([0, 1, 2])["tokens"], long.read([0, 1, 2])["tokens"])
