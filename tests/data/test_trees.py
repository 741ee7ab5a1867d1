"""Trees in rows: planned, laid out, and trained on as their paths would be alone.

Shapes: B rows, T tokens of a row, E predictions, S segments.
"""

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
SEEDS = st.integers(0, 10**6)


def _random_tree(random, depth=3, predicted=False):
  children = []
  if depth:
    for _ in range(random.integers(0, 4)):
      children.append(_random_tree(random, depth - 1, True))
  return Node(
    tokens=tuple(random.integers(1, 50, random.integers(1, 6)).tolist()),
    children=tuple(children),
    predicted=predicted,
    side=int(random.integers(-1, 2)),
    weight=float(random.random()),
    advantage=float(random.normal()),
  )


def _paths(node, before=(), spans=()):
  """(tokens of the path, spans of its predicted nodes) of every leaf."""
  path = before + node.tokens
  if node.predicted:
    spans += ((len(before), len(path)),)
  if not node.children:
    yield path, spans
  for child in node.children:
    yield from _paths(child, path, spans)


def _predicted(roots):
  """The predicted nodes of some trees."""
  return [node for root in roots for node in trees.nodes(root) if node.predicted]


def _steps(roots):
  return sorted((node.tokens, node.weight, node.advantage) for node in _predicted(roots))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_plans_fit_their_rows_lose_no_step_and_count_what_they_split(seed, splittable):
  random = np.random.default_rng(seed)
  forest = [_random_tree(random) for _ in range(8)]
  plan = trees.plan(forest, 40, splittable)
  for row in plan.rows:
    assert sum(tree.size() for tree in row) <= 40
  kept = [tree for number, tree in enumerate(forest) if number not in plan.too_long]
  assert _steps(tree for row in plan.rows for tree in row) == _steps(kept)
  whole = [tree for tree in forest if tree.size() <= 40]
  if not splittable:
    assert plan.split == 0
    assert len(kept) == len(whole)
    return
  assert plan.split == len(kept) - len(whole)
  for number in plan.too_long:
    assert max(len(path) for path, _ in _paths(forest[number])) > 40


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_arrays_are_well_formed(seed):
  random = np.random.default_rng(seed)
  plan = trees.plan([_random_tree(random) for _ in range(6)], 64, True)
  if not plan.rows:
    return
  limits = trees.bounds(plan.rows, len(plan.rows), 64)
  arrays = trees.layout(plan.rows, limits)
  check_until(arrays["until"])
  check_targets(arrays["targets"], 50)
  segment_E, tokens_S = arrays["segment"][0], arrays["segment_tokens"][0]
  real_E = segment_E < limits.segments
  check_segments(segment_E[real_E])
  assert real_E[: real_E.sum()].all(), "padding comes last"
  counts_S = np.bincount(segment_E[real_E], minlength=limits.segments)
  np.testing.assert_array_equal(counts_S, tokens_S)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_bounds_are_rounded_up_no_further_than_they_must(seed):
  random = np.random.default_rng(seed)
  plan = trees.plan([_random_tree(random) for _ in range(6)], 64, True)
  if not plan.rows:
    return
  bound = trees.bounds(plan.rows, 1, 64).predictions
  largest = max(sum(len(node.tokens) for node in _predicted(row)) for row in plan.rows)
  assert bound % 8 == 0
  assert 0 <= bound - largest < 8


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
      part = together[name][len(array) * group :][: len(array)]
      np.testing.assert_array_equal(part, array, err_msg=name)


def test_a_chain_of_more_steps_than_python_has_frames_is_planned_split_and_laid_out():
  steps = [[3]] * 1200
  pair = trees.pair([1, 2], steps, steps)
  assert pair.size() == 2402
  plan = trees.plan([pair], 2402, splittable=False)
  arrays = trees.layout(plan.rows, trees.bounds(plan.rows, 1, 2402))
  assert arrays["segment_tokens"].sum() == 2400
  assert arrays["positions"].max() == 1201
  halves = trees.split(pair, 1202)
  assert [half.size() for half in halves] == [1202, 1202]
  assert trees.split(pair, 1201) is None, "a path alone is too long"


@given(st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_every_batch_fits_its_bounds_where_epochs_meet_too(count, batch):
  """A batch that goes over the end of an epoch may hold its largest row twice."""
  rows = []
  for number in range(count):
    tree = Node((1, 2), tuple(Node((3,) * 4) for _ in range(1 + number)), False)
    rows.append([tree])
  rows[0] *= 4
  order = trees.PackedTrees(rows, None, trees.bounds(rows, batch, 128), 0, 1.0)
  for start in range(0, 30 * batch, batch):
    arrays = order.read(list(range(start, start + batch)))
    assert (arrays["segment"] < order.limits.segments).any()


def _sums_alone(params, tree):
  """(path up to a step, its span) -> log-prob sum of the step, from each path in its own row."""
  sums = {}
  for path, spans in _paths(tree):
    T = len(path)
    hidden = MODEL.hidden(params, jnp.array([path]), jnp.arange(T)[None], jnp.full((1, T), T))
    log_prob = jax.nn.log_softmax(MODEL.logits(params, hidden))[0]
    for first, last in spans:
      step = sum(log_prob[i - 1, path[i]] for i in range(first, last))
      # A step that several paths share has the same sum in each.
      sums.setdefault((path[:last], (first, last)), step)
  return sums


def _depth_first(node, sums, before=()):
  path = before + node.tokens
  values = []
  if node.predicted:
    values.append(sums[path, (len(before), len(path))])
  for child in node.children:
    values += _depth_first(child, sums, path)
  return values


def test_a_tree_in_one_row_gives_the_log_probs_and_gradients_of_its_paths_apart():
  random = np.random.default_rng(3)
  forest = [_random_tree(random, depth=2) for _ in range(2)]
  params = MODEL.init(jax.random.key(0))
  plan = trees.plan(forest, 128, False)
  batch = trees.layout(plan.rows, trees.bounds(plan.rows, len(plan.rows), 128))

  def in_rows(params):
    return preference.segment_log_probs(MODEL, params, batch)[0]

  def alone(params):
    values = []
    for row in plan.rows:
      for tree in row:
        values += _depth_first(tree, _sums_alone(params, tree))
    return jnp.stack(values)

  sums = jax.jit(in_rows)(params)
  np.testing.assert_allclose(sums, jax.jit(alone)(params), atol=1e-5)
  weights = jnp.asarray(random.normal(size=len(sums)), jnp.float32)
  found = jax.jit(jax.grad(lambda params: weights @ in_rows(params)))(params)
  expected = jax.jit(jax.grad(lambda params: weights @ alone(params)))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def _some_pairs(count):
  random = np.random.default_rng(5)

  def steps(number, length):
    return [random.integers(1, 50, length).tolist() for _ in range(number)]

  def advantages(number):
    return random.normal(size=number).tolist()

  pairs = []
  for number in range(count):
    pair = trees.pair(
      random.integers(1, 50, 6).tolist(),
      steps(2, 4),
      steps(1, 2 + number % 3),
      advantages=(advantages(2), advantages(1)),
    )
    pairs.append(pair)
  return pairs


def _trainer_and_batch(mesh, accumulate, loss, rows, seq_len):
  layout = make_layout(mesh, jax.devices()[: int(np.prod(dataclasses.astuple(mesh)))])
  group_rows = len(rows) // accumulate // layout.batch_shards
  limits = trees.bounds(rows, group_rows, seq_len)
  batch = trees.layout(rows, limits)
  batch["reference"] = -3.0 * batch["segment_tokens"]
  cfg = schema.Train(batch_size=len(rows), accumulate=accumulate)
  trainer = preference.PreferenceTrainer(
    Transformer(MODEL.cfg, layout.constrain),
    optimizer.make(cfg.optimizer, 10),
    layout,
    cfg,
    schema.Objective(loss=loss, advantage=schema.Advantage(normalise=True)),
    limits,
  )
  return trainer, layout.put(batch, len(rows))


# Row shards; other meshes are in tests/train/matrix.py.
SHARDS = [("step_dpo", 6), ("kto", 3), ("orpo", 3), ("awr", 3)]


@pytest.mark.parametrize(("loss", "shards"), SHARDS)
def test_neither_packing_nor_sharding_nor_accumulation_changes_a_preference_loss_or_its_gradient(
  loss, shards
):
  pairs = _some_pairs(12)
  alone = [[pair] for pair in pairs]
  packed = trees.plan(pairs[::-1], 64, False).rows
  params = MODEL.init(jax.random.key(1))

  def gradient_and_loss(mesh, accumulate, rows, seq_len):
    trainer, batch = _trainer_and_batch(mesh, accumulate, loss, rows, seq_len)
    replicated = jax.device_put(params, trainer.layout.replicated)
    gradient, metrics = jax.jit(trainer.preference_gradients)(replicated, batch)
    return gradient, float(metrics["loss"])

  expected, expected_loss = gradient_and_loss(schema.Mesh(1, 1, 1, 1), 1, packed, 64)
  assert float(optax.global_norm(expected)) > 1e-4
  mesh = schema.Mesh(1, shards, 1, 1)
  found, found_loss = gradient_and_loss(mesh, 12 // shards // 2, alone, 24)
  assert found_loss == pytest.approx(expected_loss, abs=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_an_identical_pair_gives_log_2():
  same = [[3, 4], [5, 6]]
  rows = [[trees.pair([1, 2], same, same)]]
  arrays = trees.layout(rows, trees.bounds(rows, 1, 16))
  batch = jax.tree.map(jnp.asarray, arrays)
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


PAIR = trees.pair([1, 2], [[3, 4]], [[5]])


@pytest.mark.parametrize(
  ("smaller", "message"),
  [({"predictions": 2}, "bounds are 2 and 2"), ({"seq_len": 4}, "ends at token 5 .* takes 4")],
)
def test_a_tree_beyond_the_bounds_is_named(smaller, message):
  limits = dataclasses.replace(trees.bounds([[PAIR]], 1, 8), **smaller)
  with pytest.raises(trees.TreeError, match=message):
    trees.layout([[PAIR]], limits)


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    (Node((1, 2)), "nothing comes before it"),
    (
      trees.pair([1, 2], [[3, 4]], [[5]], weights=([-1.0], [1.0])),
      "the step's weight -1.0; expected 0 or more",
    ),
    (trees.pair([1, -5], [[3, 4]], [[5]]), "a token is -5"),
    (Node((), predicted=False), "without tokens"),
  ],
)
def test_a_tree_that_cannot_be_laid_out_is_named(tree, message):
  with pytest.raises(trees.TreeError, match=message):
    trees.layout([[tree]], trees.bounds([[PAIR]], 1, 8))
