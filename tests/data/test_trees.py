"""Shapes: B rows, T places, E predictions, S segments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthjax.config import schema
from synthjax.data import trees
from synthjax.data.trees import Node
from synthjax.kernels.interval_attention import check_until
from synthjax.kernels.linear_logprob import check_segments, check_targets
from synthjax.losses.registry import Segments, objective
from synthjax.model.transformer import Transformer
from synthjax.sharding import make_layout
from synthjax.train import optimizer, preference

MODEL = Transformer(
  schema.Model(
    d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64, vocab_size=50, mlp="relu"
  )
)


def _random_tree(random, depth=3, predicted=False):
  children = (
    tuple(_random_tree(random, depth - 1, True) for _ in range(random.integers(0, 4)))
    if depth
    else ()
  )
  tokens = tuple(random.integers(1, 50, random.integers(1, 6)).tolist())
  return Node(
    tokens,
    children,
    predicted,
    side=int(random.integers(-1, 2)),
    weight=float(random.random()),
    advantage=float(random.normal()),
  )


def _paths(node, before=(), steps=()):
  """(tokens of the path, spans of its predicted nodes) of every leaf."""
  span = [(len(before), len(before) + len(node.tokens))] if node.predicted else [None]
  path, steps = before + node.tokens, steps + tuple(span)
  if not node.children:
    yield path, steps
  for child in node.children:
    yield from _paths(child, path, steps)


def _limits(rows, B, T):
  return trees.bounds(rows, B, T)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_plans_fit_their_rows_lose_no_step_and_count_what_they_split(seed, splittable):
  random = np.random.default_rng(seed)
  forest = [_random_tree(random) for _ in range(8)]
  plan = trees.plan(forest, 40, splittable)
  assert all(sum(tree.size() for tree in row) <= 40 for row in plan.rows)
  steps = lambda nodes: sorted(
    (n.tokens, n.weight, n.advantage) for root in nodes for n in trees.nodes(root) if n.predicted
  )
  kept = [tree for number, tree in enumerate(forest) if number not in plan.too_long]
  assert steps(tree for row in plan.rows for tree in row) == steps(kept)
  whole = [tree for tree in forest if tree.size() <= 40]
  if splittable:
    assert plan.split == len(kept) - len(whole)
    assert all(
      max(len(path) for path, _ in _paths(forest[number])) > 40 for number in plan.too_long
    )
  else:
    assert plan.split == 0 and len(kept) == len(whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_arrays_are_well_formed(seed):
  random = np.random.default_rng(seed)
  plan = trees.plan([_random_tree(random) for _ in range(6)], 64, True)
  if not plan.rows:
    return
  limits = _limits(plan.rows, len(plan.rows), 64)
  arrays = trees.layout(plan.rows, limits)
  check_until(arrays["until"])
  check_targets(arrays["targets"], 50)
  segment_E, tokens_S = arrays["segment"][0], arrays["segment_tokens"][0]
  real = segment_E < limits.segments
  check_segments(segment_E[real])
  largest = trees.bounds(plan.rows, 1, 64).predictions
  most = max(
    sum(len(n.tokens) for tree in row for n in trees.nodes(tree) if n.predicted)
    for row in plan.rows
  )
  assert largest % 8 == 0 and 0 <= largest - most < 8, "bounds are rounded up, no further"
  assert real[: real.sum()].all() and tokens_S.sum() == real.sum()
  np.testing.assert_array_equal(np.bincount(segment_E[real], minlength=limits.segments), tokens_S)


@pytest.mark.parametrize("groups", [3, 6, 256])
def test_groups_of_rows_are_laid_out_as_each_would_be_alone(groups):
  """A group is what one device holds of a batch."""
  random = np.random.default_rng(1)
  rows = [[_random_tree(random)] for _ in range(2 * groups)]
  limits = trees.bounds(rows, 2, 128)
  together = trees.layout(rows, limits)
  for group in range(groups):
    alone = trees.layout(rows[2 * group : 2 * group + 2], limits)
    for name, array in alone.items():
      np.testing.assert_array_equal(
        together[name][len(array) * group :][: len(array)], array, err_msg=name
      )


def test_a_chain_of_more_steps_than_python_has_frames_is_planned_split_and_laid_out():
  steps = [[3]] * 1200
  pair = trees.pair([1, 2], steps, steps)
  assert pair.size() == 2402
  plan = trees.plan([pair], 2402, splittable=False)
  arrays = trees.layout(plan.rows, trees.bounds(plan.rows, 1, 2402))
  assert arrays["segment_tokens"].sum() == 2400 and arrays["positions"].max() == 1201
  halves = trees.split(pair, 1202)
  assert [half.size() for half in halves] == [1202, 1202]
  assert trees.split(pair, 1201) is None, "a path alone is too long"


def _sums_apart(params, tree):
  """Step -> log-prob sum, from each path in a row of its own."""
  found = {}
  for path, spans in _paths(tree):
    n = len(path)
    hidden = MODEL.hidden(params, jnp.array([path]), jnp.arange(n)[None], jnp.full((1, n), n))
    log_prob = jax.nn.log_softmax(MODEL.logits(params, hidden))[0]
    for span in filter(None, spans):
      found[path[: span[1]], span] = sum(log_prob[i - 1, path[i]] for i in range(*span))
  return found


@given(st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_every_batch_fits_its_bounds_where_epochs_meet_too(count, batch):
  """A batch that goes over the end of an epoch may hold its largest row twice."""
  rows = [
    [Node((1, 2), tuple(Node((3,) * 4) for _ in range(1 + i)), False)] * (1 + 3 * (i == 0))
    for i in range(count)
  ]
  source = trees.PackedTrees(rows, None, trees.bounds(rows, batch, 128), 0, 1.0)
  for start in range(0, 30 * batch, batch):
    held = source.read(list(range(start, start + batch)))
    assert (held["segment"] < source.limits.segments).sum() > 0


def test_a_tree_in_one_row_gives_the_log_probs_and_gradients_of_its_paths_apart():
  random = np.random.default_rng(3)
  forest = [_random_tree(random, depth=2) for _ in range(2)]
  params = MODEL.init(jax.random.key(0))
  plan = trees.plan(forest, 128, False)
  batch = trees.layout(plan.rows, _limits(plan.rows, len(plan.rows), 128))
  order = [tree for row in plan.rows for tree in row]

  def in_rows(params):
    return preference.segment_log_probs(MODEL, params, batch)[0]

  def apart(params):
    values = []
    for tree in order:
      sums = _sums_apart(params, tree)
      seen = {}
      for path, spans in _paths(tree):
        for span in filter(None, spans):
          seen.setdefault((path[: span[1]], span), sums[path[: span[1]], span])
      values += _depth_first(tree, seen)
    return jnp.stack(values)

  sums = [jax.jit(f)(params) for f in (in_rows, apart)]
  np.testing.assert_allclose(*sums, atol=1e-5)
  weights = jnp.asarray(random.normal(size=len(sums[0])), jnp.float32)
  one, other = (jax.jit(jax.grad(lambda p, f=f: weights @ f(p)))(params) for f in (in_rows, apart))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)


def _depth_first(node, sums, before=()):
  path = before + node.tokens
  found = [sums[path, (len(before), len(path))]] if node.predicted else []
  for child in node.children:
    found += _depth_first(child, sums, path)
  return found


def _some_pairs(count):
  random = np.random.default_rng(5)

  def steps(number, length):
    return [random.integers(1, 50, length).tolist() for _ in range(number)]

  def advantages(number):
    return random.normal(size=number).tolist()

  return [
    trees.pair(
      random.integers(1, 50, 6).tolist(),
      steps(2, 4),
      steps(1, 2 + number % 3),
      advantages=(advantages(2), advantages(1)),
    )
    for number in range(count)
  ]


def _trainer_and_batch(mesh, accumulate, loss, rows, seq_len):
  layout = make_layout(mesh, jax.devices()[: int(np.prod(dataclasses.astuple(mesh)))])
  group_rows = len(rows) // accumulate // layout.batch_shards
  limits = trees.bounds(rows, group_rows, seq_len)
  batch = trees.layout(rows, limits)
  batch["reference"] = -3.0 * batch["segment_tokens"]
  cfg = schema.Train(batch_size=len(rows), accumulate=accumulate)
  objective = schema.Objective(loss=loss, advantage=schema.Advantage(normalise=True))
  model = Transformer(MODEL.cfg, layout.constrain)
  trainer = preference.PreferenceTrainer(
    model, optimizer.make(cfg.optimizer, 10), layout, cfg, objective, limits
  )
  return trainer, layout.put(batch, len(rows))


_THREE, _SIX = (
  (1, 3, 1, 1),
  (1, 6, 1, 1),
)  # numbers of row shards; other meshes are in tests/train/matrix.py
_SHARDED = [("step_dpo", [_SIX]), *((loss, [_THREE]) for loss in ("kto", "orpo", "awr"))]


@pytest.mark.parametrize(("loss", "meshes"), _SHARDED)
def test_neither_packing_nor_sharding_nor_accumulation_changes_a_preference_loss_or_its_gradient(
  loss, meshes
):
  pairs = _some_pairs(12)
  alone, params = [[pair] for pair in pairs], MODEL.init(jax.random.key(1))
  packed = trees.plan(pairs[::-1], 64, False).rows
  cases = [(schema.Mesh(1, 1, 1, 1), 1, packed, 64)]
  cases += [(schema.Mesh(*mesh), 12 // mesh[1] // 2, alone, 24) for mesh in meshes]
  expected = None
  for mesh, accumulate, rows, seq_len in cases:
    trainer, batch = _trainer_and_batch(mesh, accumulate, loss, rows, seq_len)
    gradient, metrics = jax.jit(trainer.preference_gradients)(
      jax.device_put(params, trainer.layout.replicated), batch
    )
    expected = expected or (gradient, metrics)
    assert float(metrics["loss"]) == pytest.approx(float(expected[1]["loss"]), abs=1e-6)
    assert float(optax.global_norm(gradient)) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, expected[0])


def test_an_identical_pair_gives_log_2():
  same = [[3, 4], [5, 6]]
  rows = [[trees.pair([1, 2], same, same)]]
  batch = {k: jnp.asarray(v) for k, v in trees.layout(rows, trees.bounds(rows, 1, 16)).items()}
  sums_S = preference.segment_log_probs(MODEL, MODEL.init(jax.random.key(0)), batch)[0]
  segments = Segments(
    reference_S=jnp.zeros_like(sums_S),
    tokens_S=batch["segment_tokens"][0],
    weight_S=batch["weight"][0],
    side_S=batch["side"][0],
    advantage_S=batch["advantage"][0],
    pair_S=batch["tree"][0],
  )
  for name in ("dpo", "step_dpo"):
    loss, _ = objective(sums_S, segments, 1, schema.Objective(loss=name))
    assert float(loss) == pytest.approx(np.log(2))


def test_what_does_not_fit_is_named():
  tree = trees.pair([1, 2], [[3, 4]], [[5]])
  limits = trees.bounds([[tree]], 1, 8)
  with pytest.raises(trees.TreeError, match="bounds are 2 and 2"):
    trees.layout([[tree]], dataclasses.replace(limits, predictions=2))
  with pytest.raises(trees.TreeError, match="is beyond its 4 places"):
    trees.layout([[tree]], dataclasses.replace(limits, seq_len=4))
  with pytest.raises(trees.TreeError, match="nothing comes before it"):
    trees.layout([[Node((1, 2))]], limits)
  with pytest.raises(trees.TreeError, match=r"the step's weight -1.0; expected 0 and more"):
    trees.layout([[trees.pair([1, 2], [[3, 4]], [[5]], weights=([-1.0], [1.0]))]], limits)
  with pytest.raises(trees.TreeError, match="a token is -5"):
    trees.layout([[trees.pair([1, -5], [[3, 4]], [[5]])]], limits)
  with pytest.raises(trees.TreeError, match="without tokens"):
    trees.layout([[Node((), predicted=False)]], limits)
