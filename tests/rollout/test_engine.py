"""The engine on tiny random decoders and eight simulated devices.

Shapes: T tokens, S sequences, V vocabulary.
"""

import collections
import dataclasses
import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config import schema
from synthjax.config.credit import Sampling
from synthjax.config.schema import Model
from synthjax.model.transformer import Transformer
from synthjax.rollout import engine as engine_lib
from synthjax.rollout import slots
from synthjax.rollout.engine import JaxEngine
from synthjax.rollout.requests import Request, RequestError
from synthjax.rollout.slots import Shape

TINY = Model(
  d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, vocab_size=64, rope_theta=100.0
)
SMALL = dataclasses.replace(TINY, layers=1)
VARIANTS = {
  "swiglu": TINY,
  "qwen, tied": dataclasses.replace(
    SMALL, qkv_bias=True, qk_norm=True, tie_embeddings=True, mlp="relu2"
  ),
  "capped, scaled": dataclasses.replace(
    SMALL, logit_soft_cap=5.0, rope_scaling="llama3", rope_factor=4.0, rope_original_context=64
  ),
  "windowed, capped scores": dataclasses.replace(SMALL, window=5, attention_soft_cap=0.5),
}
TWO = schema.Mesh(fsdp=2)  # most tests: two parts share the blocks
SHAPE = Shape(blocks=2, slots=4, pages=2, page_length=32, max_tokens=16, steps=5)
ALWAYS = dataclasses.replace(SHAPE, steps=1)
# The host looks when samples are over.
LATE = Shape(blocks=4, slots=2, pages=3, page_length=32, max_tokens=24, steps=16)
WIDE = Shape(blocks=1, slots=8, pages=1, page_length=32, max_tokens=16)
FOUR, OVER_TENSOR = schema.Mesh(fsdp=4), schema.Mesh(fsdp=1, tensor=2)


@pytest.fixture(autouse=True, scope="module")
def _compiled_fast():
  """Compiled fast instead of well: nearly all the time of these tests is the compiler's."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


class Letters:
  """60 ids, each a letter; the vocabulary has four more that mean nothing."""

  size, eos_id, pad_id, fingerprint = 60, 7, 0, "letters"

  def encode(self, text):
    if not text.isascii():
      raise ValueError(f"{text!r} has unknown letters")
    return [ord(c) - 64 for c in text]

  def decode(self, ids):
    return "".join(chr(64 + i) for i in ids)


LETTERS = Letters()


@functools.cache
def _model(name=""):
  model = Transformer(VARIANTS.get(name, SMALL))
  params = jax.jit(model.init)(jax.random.key(0))
  # Sharper than fresh parameters: samples differ by prompt, not by chance alone.
  params["embedding"] = params["embedding"] * 4
  return model, params


def _engine(name="", shape=SHAPE, mesh=TWO, tokenizer=LETTERS, slots=16, fair=False):
  """On as many devices as the mesh has; the others would wait."""
  devices = jax.devices()[: math.prod(dataclasses.astuple(mesh))]
  with mock.patch.object(jax, "local_devices", return_value=devices):
    return JaxEngine(*_model(name), tokenizer, shape=shape, mesh=mesh, slots=slots, fair=fair)


def _requests(count=30, seed=0, sampling=None):
  """Uneven ones, some with a common beginning, some with several samples."""
  random = np.random.default_rng(seed)
  stem = tuple(random.integers(0, 60, 30).tolist())
  found = []
  for i in range(count):
    length = int(random.integers(1, 25))
    prompt = stem[:length]
    if i % 3:
      prompt = (*stem[: i % 7], *random.integers(0, 60, length % 20 + 1).tolist())
    own = sampling or Sampling(max_tokens=int(random.integers(1, 17)), temperature=0.8)
    n = int(random.integers(1, 5))
    found.append(Request(f"r{i}", prompt_ids=prompt, n=n, seed=i, sampling=own))
  return found


def _drawn(result):
  return [(sample.ids, sample.finish) for sample in result.samples]


def _answers(engine, requests):
  """({id: (ids, finish) of each sample}, {id: result})."""
  found = {result.id: result for result in engine.generate(requests)}
  assert found.keys() == {request.id for request in requests}
  assert not [result.error for result in found.values() if result.error]
  _nothing_is_held(engine)
  return {name: _drawn(result) for name, result in found.items()}, found


def _nothing_is_held(engine):
  assert not engine.busy
  assert not any(engine._queues)
  assert not any(engine._flying)
  assert not engine._waiting
  assert all(room.left == 0 for room in engine._rooms)


@functools.cache
def _trainer(name):
  model, params = _model(name)

  @jax.jit
  def log_probs(ids_T):
    places = jnp.arange(48)
    hidden = model.hidden(params, ids_T[None], places[None], jnp.full((1, 48), 48))
    return model.log_prob(params, hidden[:, :-1], ids_T[None, 1:]).log_prob[0], model.logits(
      params, hidden
    )[0]

  return lambda ids: log_probs(np.pad(np.array(ids, np.int32), (0, 48 - len(ids))))


@pytest.mark.parametrize("name", VARIANTS)
def test_sampled_log_probs_are_the_trainers_through_restarts_and_wrap_arounds(name):
  """Requests for 24 slots on 8: a slot is used several times, and its ring of 16 goes round."""
  engine, requests = _engine(name), _requests(24)
  _, found = _answers(engine, requests)
  assert int(engine._state.time.max()) > 3 * SHAPE.max_tokens
  assert engine.counts.prefilled < engine.counts.prompt_tokens / 2
  for request in requests:
    for sample in found[request.id].samples:
      ids = (*request.prompt_ids, *sample.ids)
      if sample.finish == "stop":
        ids += (LETTERS.eos_id,)
      theirs = _trainer(name)(ids)[0][len(request.prompt_ids) - 1 : len(ids) - 1]
      assert len(theirs) == len(sample.log_probs) <= request.sampling.max_tokens
      np.testing.assert_allclose(sample.log_probs, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["swiglu", "windowed, capped scores"])
def test_greedy_is_the_argmax_of_a_full_forward(name):
  requests = _requests(12, sampling=Sampling(max_tokens=12, temperature=0))
  answers, _ = _answers(_engine(name), requests)
  for request in requests:
    ids, finish = list(request.prompt_ids), "length"
    for _ in range(12):
      best = int(jnp.argmax(_trainer(name)(ids)[1][len(ids) - 1, : LETTERS.size]))
      if best == LETTERS.eos_id:
        finish = "stop"
        break
      ids.append(best)
    greedy = tuple(ids[len(request.prompt_ids) :])
    assert answers[request.id] == [(greedy, finish)] * request.n


def test_a_sample_depends_on_nothing_but_policy_prompt_settings_and_seed():
  requests = _requests(30)
  expected, _ = _answers(_engine(), requests)
  alone, _ = _answers(_engine(), requests[4:5])
  backwards, _ = _answers(_engine(shape=LATE, mesh=FOUR), requests[::-1])
  chosen, _ = _answers(_engine(shape=None, mesh=schema.Mesh(replica=2, fsdp=2)), requests)
  wide, _ = _answers(_engine(shape=WIDE, mesh=OVER_TENSOR), requests)
  fair, _ = _answers(_engine(fair=True), requests)
  assert alone == {"r4": expected["r4"]}
  assert expected == backwards == chosen == wide == fair
  reseeded = [dataclasses.replace(request, seed=request.seed + 1) for request in requests]
  other, _ = _answers(_engine(), reseeded)
  assert sum(other[name] != expected[name] for name in other) > 25
  distinct = {ids for samples in expected.values() for ids, _ in samples}
  assert len(distinct) > 50


def test_a_request_with_more_samples_begins_with_the_same_ones():
  few, many = (
    _answers(_engine(), [Request("a", "ABC", n=n, sampling=Sampling(max_tokens=8))])[0]["a"]
    for n in (3, 40)
  )
  assert many[:3] == few
  assert len(set(many)) > 30


def test_max_tokens_and_end_of_text_end_a_sample():
  requests = [Request(str(n), "ABCDE", n=60, sampling=Sampling(max_tokens=n)) for n in (1, 5, 16)]
  answers, found = _answers(_engine(), requests)
  for name, result in found.items():
    for sample in result.samples:
      ended = sample.finish == "stop"
      assert len(sample.ids) <= int(name) - ended
      assert ended or len(sample.ids) == int(name)
      assert LETTERS.eos_id not in sample.ids
      assert len(sample.log_probs) == len(sample.ids) + ended
  assert {finish for _, finish in answers["16"]} == {"stop", "length"}


@pytest.mark.parametrize(
  ("shape", "mesh"), [(ALWAYS, TWO), (SHAPE, TWO), (LATE, FOUR)], ids=["always", "often", "late"]
)
def test_stop_texts_and_ids_end_a_sample_where_they_should_whenever_the_host_looks(shape, mesh):
  free = [Request(str(i), "ABC", n=4, seed=i, sampling=Sampling(max_tokens=16)) for i in range(8)]
  whole, _ = _answers(_engine(), free)
  # Texts that some samples hold: two letters each.
  common = collections.Counter()
  for samples in whole.values():
    for ids, _ in samples:
      common.update([LETTERS.decode(ids[3:5]), LETTERS.decode(ids[6:8])])
  stop = tuple(pair for pair, _ in common.most_common(6) if len(pair) == 2)
  stop_ids = (9, 12)
  sampling = Sampling(max_tokens=16, stop=stop, stop_ids=stop_ids)
  stopped = [dataclasses.replace(request, sampling=sampling) for request in free]
  _, found = _answers(_engine(shape=shape, mesh=mesh), stopped)
  ends = collections.Counter()
  for name, samples in whole.items():
    for (ids, finish), sample in zip(samples, found[name].samples):
      text = Letters().decode(ids)
      at_text = min((text.find(mark) for mark in stop if mark in text), default=99)
      at_id = min((i for i, token in enumerate(ids) if token in stop_ids), default=99)
      if at_id < at_text + 2 and at_id < 99:
        ends["id"] += 1
        expected = (text[:at_id], ids[:at_id], "stop")
        assert len(sample.log_probs) == at_id + 1
      elif at_text < 99:
        ends["text"] += 1
        expected = (text[:at_text], ids[: at_text + 2], "stop")
        assert len(sample.log_probs) == at_text + 2
      else:
        ends["neither"] += 1
        expected = (text, ids, finish)
      assert (sample.text, sample.ids, sample.finish) == expected
  assert min(ends[kind] for kind in ("id", "text", "neither")) > 0, ends


def test_equal_requests_are_computed_once_and_answered_each():
  request = Request("a", "ABC", n=3, sampling=Sampling(max_tokens=8))
  same = dataclasses.replace(request, id="b")
  other = dataclasses.replace(request, id="c", seed=1)
  engine = _engine()
  answers, _ = _answers(engine, [request, same, other])
  assert answers["a"] == answers["b"] != answers["c"]
  assert engine.counts.samples == 6


def test_one_prefill_of_a_trace_serves_all_its_nested_prefixes():
  trace = tuple(range(10, 42))
  lengths = (8, 14, 20, 26, 32)
  requests = []
  for length in lengths:
    prefix = trace[:length]
    requests.append(Request(str(length), prompt_ids=prefix, n=8, sampling=Sampling(max_tokens=4)))
  engine = _engine(shape=WIDE, mesh=OVER_TENSOR)
  _answers(engine, requests)
  assert engine.counts.prefilled == 32
  assert engine.counts.prompt_tokens == 8 * sum(lengths)


def _compiled(engine):
  """How often each function of the engine was compiled."""
  functions = engine._functions
  jitted = (functions.admit, functions.decode, engine_lib._unstacked(engine.model))
  return [function._cache_size() for function in jitted]


def test_new_weights_are_taken_over_without_compiling_again():
  engine, requests = _engine(), _requests(10)
  before, _ = _answers(engine, requests)
  compiled = _compiled(engine)
  params = _model()[0].init(jax.random.key(1))
  engine.load(params, "new")
  after, _ = _answers(engine, requests)
  assert engine.fingerprint == "new"
  assert after != before
  engine.load(_model()[1])
  assert _answers(engine, requests)[0] == before
  assert _compiled(engine) == compiled
  assert compiled[:2] == [1, 1]
  again = _engine()
  assert again.counts.compilations == 0
  assert _answers(again, requests)[0] == before


def test_new_weights_are_refused_while_requests_are_in_flight():
  engine = _engine()
  engine.add(Request("a", "ABC"[:2], sampling=Sampling(max_tokens=16)))
  with pytest.raises(RuntimeError, match="in flight"):
    engine.load(_model()[1])
  engine.cancel("a")
  engine.step()
  engine.load(_model()[1])


BAD = {
  "long": (Request("long", prompt_ids=(1,) * 33), "prompt is 33 tokens long; this engine has room"),
  "many": (Request("many", "A", sampling=Sampling(max_tokens=17)), "max_tokens is 17 tokens long"),
  "empty": (Request("empty"), "prompt is empty; expected at least one token"),
  "none": (Request("none", "A", n=0), "n is 0; expected at least 1"),
  "above": (Request("above", prompt_ids=(1, 60)), "prompt_ids span 1 to 60; expected ids from 0"),
  "below": (Request("below", prompt_ids=(-1, 5)), "prompt_ids span -1 to 5; expected ids from 0"),
  "words": (Request("words", "né"), "prompt: 'né' has unknown letters"),
  "cold": (
    Request("cold", "A", sampling=Sampling(temperature=-1)),
    "temperature is -1.0; expected",
  ),
  "nan": (Request("nan", "A", sampling=Sampling(temperature=float("nan"))), "temperature is nan"),
  "top_p": (
    Request("top_p", "A", sampling=Sampling(top_p=0)),
    "top_p is 0.0; expected float, 1e-06",
  ),
  "stop": (Request("stop", "A", sampling=Sampling(stop=("",))), "stop[0] is '';"),
  "stop_ids": (
    Request("stop_ids", "A", sampling=Sampling(stop_ids=(60,))),
    "stop_ids span 60 to 60; expected ids from 0 to 59",
  ),
}


def test_every_bad_request_gets_its_own_error_and_the_others_go_on():
  good = [dataclasses.replace(r, sampling=Sampling(max_tokens=3)) for r in _requests(6)]
  bad = [request for request, _ in BAD.values()]
  mixed = []
  for number, request in enumerate(bad):
    mixed += [request, *good[number : number + 1]]
  engine = _engine()
  found = {result.id: result for result in engine.generate(mixed)}
  assert found.keys() == {request.id for request in mixed}
  for name, (_, message) in BAD.items():
    assert message in found[name].error
    assert not found[name].samples
  alone, _ = _answers(_engine(), good)
  assert {request.id: _drawn(found[request.id]) for request in good} == alone
  engine.add(Request("twice", "A"[:1], sampling=Sampling(max_tokens=2)))
  with pytest.raises(RequestError, match="id 'twice' is in use"):
    engine.add(Request("twice", "B", sampling=Sampling(max_tokens=2)))
  while engine.busy:
    engine.step()


def test_a_vocabulary_that_does_not_hold_the_tokenizers_ids_is_refused():
  model = Transformer(dataclasses.replace(TINY, vocab_size=32))
  with pytest.raises(ValueError, match="the model has 32 ids, the tokenizer 60"):
    JaxEngine(model, model.init(jax.random.key(0)), Letters())


def test_the_ids_beyond_the_tokenizers_are_never_drawn():
  sampling = Sampling(max_tokens=16, temperature=100.0)
  answers, _ = _answers(_engine(), [Request("a", "ABC", n=200, sampling=sampling)])
  drawn = {token for ids, _ in answers["a"] for token in ids}
  assert drawn == set(range(60)) - {7}


def test_ninety_percent_of_the_slots_are_occupied_on_an_uneven_queue():
  random = np.random.default_rng(0)
  requests = []
  for i in range(600):
    prompt = tuple(random.integers(8, 60, random.integers(2, 17)).tolist())
    sampling = Sampling(max_tokens=int(random.integers(2, 33)))
    requests.append(Request(str(i), prompt_ids=prompt, sampling=sampling))
  tokenizer = Letters()
  tokenizer.eos_id = -1
  engine = _engine(shape=None, tokenizer=tokenizer, slots=32)
  found = {result.id: result for result in engine.generate(requests)}
  for request in requests:
    assert len(found[request.id].samples[0].ids) == request.sampling.max_tokens
  tokens = sum(request.sampling.max_tokens for request in requests)
  assert engine.counts.tokens == engine.counts.used == tokens
  assert engine.counts.used >= 0.9 * engine.counts.offered, engine.counts.line()
  assert engine.counts.compilations == 2


@pytest.mark.parametrize("fair", [False, True], ids=["batch", "fair"])
def test_cancelled_requests_free_what_they_hold_at_any_moment_and_the_others_are_not_moved(fair):
  requests = _requests(40, sampling=Sampling(max_tokens=16, temperature=0.8))
  expected, _ = _answers(_engine(), requests)
  engine = _engine(fair=fair)
  random = np.random.default_rng(1)
  found = {}
  cancelled = set()
  for request in requests[:20]:
    engine.add(request)
  for n in range(1000):
    if not engine.busy:
      break
    if n == 2:
      for request in requests[20:]:
        engine.add(request)
    # Between two steps the device is at work: on some of these, and on queues that hold others.
    for name in random.permutation(sorted(engine._asked))[:2]:
      engine.cancel(str(name))
      cancelled.add(str(name))
    if n == 3:
      # The id of a cancelled request is free at once.
      again = next(request for request in requests if request.id in cancelled)
      engine.add(again)
      cancelled.discard(again.id)
    found |= {result.id: _drawn(result) for result in engine.step()}
  _nothing_is_held(engine)
  assert found.keys() | cancelled == {request.id for request in requests}
  assert len(found) > 5
  assert len(cancelled) > 5
  assert found == {name: expected[name] for name in found}
  engine.cancel("nobody")
  assert _answers(engine, requests)[0] == expected


def test_a_request_of_one_sample_does_not_wait_for_those_with_many():
  many = []
  for i in range(6):
    prompt = (10 + i, 20, 30)
    sampling = Sampling(max_tokens=16)
    many.append(Request(f"m{i}", prompt_ids=prompt, n=40, seed=i, sampling=sampling))
  one = Request("one", prompt_ids=(50, 51), sampling=Sampling(max_tokens=1))
  looks, found = {}, {}
  for fair in (False, True):
    engine = _engine(fair=fair)
    steps = 0
    results = {}
    for request in many:
      engine.add(request)
    while engine.busy:
      if steps == 3:
        engine.add(one)
      results |= {result.id: result for result in engine.step()}
      steps += 1
      if "one" in results:
        looks.setdefault(fair, steps - 3)
    _nothing_is_held(engine)
    found[fair] = {name: _drawn(result) for name, result in results.items()}
  # A sample of 16 tokens takes four looks; 240 samples on 8 slots take 30 times that.
  assert looks[True] <= 10 < 60 < looks[False], looks
  assert found[True] == found[False]
  assert len(found[True]) == 7


def test_a_caller_that_has_had_enough_leaves_nothing_behind():
  engine, requests = _engine(), _requests(30)
  results = engine.generate(requests)
  next(results)
  results.close()
  _nothing_is_held(engine)
  assert _answers(engine, requests)[0] == _answers(_engine(), requests)[0]


def test_partial_samples_grow_into_the_result():
  engine = _engine(shape=ALWAYS)
  request = Request("a", "ABC", n=12, sampling=Sampling(max_tokens=16, stop=("Z",)))
  engine.add(request)
  before, result = [""] * 12, None
  looks = []
  while engine.busy:
    result = next(iter(engine.step()), None)
    if engine.busy:
      now = [sample.text for sample in engine.partial("a")]
      assert all(new.startswith(old) for new, old in zip(now, before))
      looks.append(sum(map(len, now)))
      before = now
  assert all(sample.text.startswith(old) for sample, old in zip(result.samples, before))
  assert looks == sorted(looks) and len(set(looks)) > 4


def test_a_session_without_a_shape_grows_when_longer_requests_come_in_between():
  engine = _engine(shape=None, slots=8)
  engine.add(Request("short", prompt_ids=(1, 2), n=3, sampling=Sampling(max_tokens=16)))
  results = {}
  for n in range(200):
    results |= {result.id: result for result in engine.step()}
    if n == 0:
      engine.add(
        Request("long", prompt_ids=tuple(range(8, 48)) * 2, sampling=Sampling(max_tokens=40))
      )
    if not engine.busy:
      break
  _nothing_is_held(engine)
  assert len(results["short"].samples) == 3
  assert engine._shape.page_length >= 80
  assert engine._shape.max_tokens >= 40
  assert results["long"].samples[0].finish == "stop" or len(results["long"].samples[0].ids) == 40


def test_a_shape_in_use_is_not_compiled_again_for_another_engine():
  misses = slots.functions.cache_info().misses
  _engine(), _engine()
  assert slots.functions.cache_info().misses - misses <= 1
