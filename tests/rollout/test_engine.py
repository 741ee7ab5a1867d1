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
LATE = Shape(
  blocks=4, slots=2, pages=3, page_length=32, max_tokens=24, steps=16
)  # the host looks when samples are over
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
    prompt = (
      stem[:length]
      if i % 3 == 0
      else (*stem[: i % 7], *random.integers(0, 60, length % 20 + 1).tolist())
    )
    how = sampling or Sampling(max_tokens=int(random.integers(1, 17)), temperature=0.8)
    found.append(
      Request(f"r{i}", prompt_ids=prompt, n=int(random.integers(1, 5)), seed=i, sampling=how)
    )
  return found


def _answers(engine, requests):
  found = {result.id: result for result in engine.generate(requests)}
  assert found.keys() == {request.id for request in requests}
  assert not [result.error for result in found.values() if result.error]
  _nothing_is_held(engine)
  return {
    name: [(s.ids, s.finish) for s in result.samples] for name, result in found.items()
  }, found


def _nothing_is_held(engine):
  assert (
    not engine.busy and not any(engine._queues) and not any(engine._flying) and not engine._waiting
  )
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
  """24 slots' worth of requests on 8 slots: a slot is used several times, and its ring of 16 places goes round."""
  engine, requests = _engine(name), _requests(24)
  _, found = _answers(engine, requests)
  assert int(engine._state.time.max()) > 3 * SHAPE.max_tokens
  assert engine.counts.prefilled < engine.counts.prompt_tokens / 2
  for request in requests:
    for sample in found[request.id].samples:
      ids = (*request.prompt_ids, *sample.ids, *((7,) if sample.finish == "stop" else ()))
      theirs = _trainer(name)(ids)[0][len(request.prompt_ids) - 1 : len(ids) - 1]
      assert len(theirs) == len(sample.log_probs) <= request.sampling.max_tokens
      np.testing.assert_allclose(sample.log_probs, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["swiglu", "windowed, capped scores"])
def test_greedy_is_the_argmax_of_a_full_forward(name):
  requests = _requests(12, sampling=Sampling(max_tokens=12, temperature=0))
  answers, _ = _answers(_engine(name), requests)
  for request in requests:
    ids, ended = list(request.prompt_ids), False
    for _ in range(12):
      if not ended:
        best = int(jnp.argmax(_trainer(name)(ids)[1][len(ids) - 1, :60]))
        ended = best == 7
        ids += [] if ended else [best]
    assert (
      answers[request.id]
      == [(tuple(ids[len(request.prompt_ids) :]), "stop" if ended else "length")] * request.n
    )


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
  other, _ = _answers(
    _engine(), [dataclasses.replace(request, seed=request.seed + 1) for request in requests]
  )
  assert sum(other[name] != expected[name] for name in other) > 25
  assert len(collections.Counter(ids for samples in expected.values() for ids, _ in samples)) > 50


def test_a_request_with_more_samples_begins_with_the_same_ones():
  few, many = (
    _answers(_engine(), [Request("a", "ABC", n=n, sampling=Sampling(max_tokens=8))])[0]["a"]
    for n in (3, 40)
  )
  assert many[:3] == few and len(set(many)) > 30


def test_max_tokens_and_end_of_text_end_a_sample():
  requests = [Request(str(n), "ABCDE", n=60, sampling=Sampling(max_tokens=n)) for n in (1, 5, 16)]
  answers, found = _answers(_engine(), requests)
  for name, samples in answers.items():
    assert all(
      len(ids) == int(name) if finish == "length" else len(ids) < int(name)
      for ids, finish in samples
    )
    assert all(7 not in ids for ids, _ in samples)
  assert {finish for _, finish in answers["16"]} == {"stop", "length"}
  assert all(
    len(s.log_probs) == len(s.ids) + (s.finish == "stop")
    for result in found.values()
    for s in result.samples
  )


@pytest.mark.parametrize(
  ("shape", "mesh"), [(ALWAYS, TWO), (SHAPE, TWO), (LATE, FOUR)], ids=["always", "often", "late"]
)
def test_stop_texts_and_ids_end_a_sample_where_they_should_whenever_the_host_looks(shape, mesh):
  free = [Request(str(i), "ABC", n=4, seed=i, sampling=Sampling(max_tokens=16)) for i in range(8)]
  whole, _ = _answers(_engine(), free)
  # Texts that some samples hold: two letters each.
  common = collections.Counter(
    "".join(chr(64 + i) for i in ids[k : k + 2])
    for s in whole.values()
    for ids, _ in s
    for k in (3, 6)
  )
  stop, stop_ids = tuple(pair for pair, _ in common.most_common(6) if len(pair) == 2), (9, 12)
  how = Sampling(max_tokens=16, stop=stop, stop_ids=stop_ids)
  _, found = _answers(
    _engine(shape=shape, mesh=mesh), [dataclasses.replace(r, sampling=how) for r in free]
  )
  ends = collections.Counter()
  for name, samples in whole.items():
    for (ids, finish), sample in zip(samples, found[name].samples):
      text = Letters().decode(ids)
      at_text = min((text.find(mark) for mark in stop if mark in text), default=99)
      at_id = min((i for i, token in enumerate(ids) if token in stop_ids), default=99)
      if at_id < at_text + 2 and at_id < 99:
        ends["id"] += 1
        assert (sample.text, sample.ids, sample.finish, len(sample.log_probs)) == (
          text[:at_id],
          ids[:at_id],
          "stop",
          at_id + 1,
        )
      elif at_text < 99:
        ends["text"] += 1
        assert (sample.text, sample.ids, sample.finish, len(sample.log_probs)) == (
          text[:at_text],
          ids[: at_text + 2],
          "stop",
          at_text + 2,
        )
      else:
        ends["neither"] += 1
        assert (sample.text, sample.ids, sample.finish) == (text, ids, finish)
  assert min(ends[kind] for kind in ("id", "text", "neither")) > 0, ends


def test_equal_requests_are_computed_once_and_answered_each():
  request = Request("a", "ABC", n=3, sampling=Sampling(max_tokens=8))
  engine = _engine()
  answers, _ = _answers(
    engine,
    [request, dataclasses.replace(request, id="b"), dataclasses.replace(request, id="c", seed=1)],
  )
  assert answers["a"] == answers["b"] != answers["c"] and engine.counts.samples == 6


def test_one_prefill_of_a_trace_serves_all_its_nested_prefixes():
  trace = tuple(range(10, 42))
  requests = [
    Request(str(n), prompt_ids=trace[:n], n=8, sampling=Sampling(max_tokens=4))
    for n in (8, 14, 20, 26, 32)
  ]
  engine = _engine(shape=WIDE, mesh=OVER_TENSOR)
  _answers(engine, requests)
  assert engine.counts.prefilled == 32 and engine.counts.prompt_tokens == 8 * (
    8 + 14 + 20 + 26 + 32
  )


def test_new_weights_are_taken_over_without_compiling_again():
  engine, requests = _engine(), _requests(10)
  before, _ = _answers(engine, requests)
  compiled = [
    f._cache_size()
    for f in (
      engine._functions.admit,
      engine._functions.decode,
      engine_lib._unstacked(engine.model),
    )
  ]
  params = _model()[0].init(jax.random.key(1))
  engine.load(params, "new")
  after, _ = _answers(engine, requests)
  assert engine.fingerprint == "new" and after != before
  engine.load(_model()[1])
  assert _answers(engine, requests)[0] == before
  assert [
    f._cache_size()
    for f in (
      engine._functions.admit,
      engine._functions.decode,
      engine_lib._unstacked(engine.model),
    )
  ] == compiled
  assert max(compiled) == 1 or compiled[:2] == [1, 1]
  again = _engine()
  assert again.counts.compilations == 0 and _answers(again, requests)[0] == before


def test_new_weights_are_refused_while_requests_are_in_flight():
  engine = _engine()
  engine.add(Request("a", "ABC"[:2], sampling=Sampling(max_tokens=16)))
  with pytest.raises(RuntimeError, match="in flight"):
    engine.load(_model()[1])
  engine.cancel("a")
  engine.step()
  engine.load(_model()[1])


BAD = {
  "long": (
    Request("long", prompt_ids=(1,) * 33),
    "prompt is 33 tokens long; this engine has room for 32",
  ),
  "many": (
    Request("many", "A", sampling=Sampling(max_tokens=17)),
    "max_tokens is 17 tokens long; this engine has room for 16",
  ),
  "empty": (Request("empty"), "prompt is empty; expected at least one token"),
  "none": (Request("none", "A", n=0), "n is 0; expected at least 1"),
  "above": (
    Request("above", prompt_ids=(1, 60)),
    "prompt_ids span 1 to 60; expected ids from 0 to 59",
  ),
  "below": (
    Request("below", prompt_ids=(-1, 5)),
    "prompt_ids span -1 to 5; expected ids from 0 to 59",
  ),
  "words": (Request("words", "né"), "prompt: 'né' has unknown letters"),
  "cold": (
    Request("cold", "A", sampling=Sampling(temperature=-1)),
    "temperature is -1.0; expected float, 0 to 100",
  ),
  "nan": (Request("nan", "A", sampling=Sampling(temperature=float("nan"))), "temperature is nan"),
  "top_p": (
    Request("top_p", "A", sampling=Sampling(top_p=0)),
    "top_p is 0.0; expected float, 1e-06 to 1",
  ),
  "stop": (Request("stop", "A", sampling=Sampling(stop=("",))), "stop[0] is '';"),
  "stop_ids": (
    Request("stop_ids", "A", sampling=Sampling(stop_ids=(60,))),
    "stop_ids span 60 to 60; expected ids from 0 to 59",
  ),
}


def test_every_bad_request_gets_its_own_error_and_the_others_go_on():
  good = [dataclasses.replace(r, sampling=Sampling(max_tokens=3)) for r in _requests(6)]
  mixed = [request for pair in zip([bad for bad, _ in BAD.values()], good * 2) for request in pair][
    :-6
  ]
  mixed = [
    *{
      request.id: request for request in [*mixed, *[bad for bad, _ in BAD.values()], *good]
    }.values()
  ]
  engine = _engine()
  found = {result.id: result for result in engine.generate(mixed)}
  assert found.keys() == {request.id for request in mixed}
  for name, (_, message) in BAD.items():
    assert message in found[name].error and not found[name].samples
  assert {
    request.id: [(s.ids, s.finish) for s in found[request.id].samples] for request in good
  } == _answers(_engine(), good)[0]
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
  answers, _ = _answers(
    _engine(), [Request("a", "ABC", n=200, sampling=Sampling(max_tokens=16, temperature=100.0))]
  )
  drawn = {token for ids, _ in answers["a"] for token in ids}
  assert drawn == set(range(60)) - {7}


def test_ninety_percent_of_the_slots_are_occupied_on_an_uneven_queue():
  random = np.random.default_rng(0)
  requests = [
    Request(
      str(i),
      prompt_ids=tuple(random.integers(8, 60, random.integers(2, 17)).tolist()),
      sampling=Sampling(max_tokens=int(random.integers(2, 33))),
    )
    for i in range(600)
  ]
  tokenizer = Letters()
  tokenizer.eos_id = -1
  engine = _engine(shape=None, tokenizer=tokenizer, slots=32)
  found = {result.id: result for result in engine.generate(requests)}
  assert all(
    len(found[request.id].samples[0].ids) == request.sampling.max_tokens for request in requests
  )
  assert (
    engine.counts.tokens
    == engine.counts.used
    == sum(request.sampling.max_tokens for request in requests)
  )
  assert engine.counts.used >= 0.9 * engine.counts.offered, engine.counts.line()
  assert engine.counts.compilations == 2


@pytest.mark.parametrize("fair", [False, True], ids=["batch", "fair"])
def test_cancelled_requests_free_what_they_hold_at_any_moment_and_the_others_are_not_moved(fair):
  requests = [
    dataclasses.replace(r, sampling=Sampling(max_tokens=16, temperature=0.8)) for r in _requests(40)
  ]
  expected, _ = _answers(_engine(), requests)
  engine, random, found, cancelled = _engine(fair=fair), np.random.default_rng(1), {}, set()
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
    again = [request for request in requests if request.id in cancelled][:1] if n == 3 else []
    for request in again:  # the id is free at once
      engine.add(request)
      cancelled.discard(request.id)
    for result in engine.step():
      found[result.id] = [(s.ids, s.finish) for s in result.samples]
  _nothing_is_held(engine)
  assert (
    found.keys() | cancelled == {request.id for request in requests}
    and len(found) > 5
    and len(cancelled) > 5
  )
  assert all(answer == expected[name] for name, answer in found.items())
  engine.cancel("nobody")
  assert _answers(engine, requests)[0] == expected


def test_a_request_of_one_sample_does_not_wait_for_those_with_many():
  how = Sampling(max_tokens=16)
  many = [
    Request(f"m{i}", prompt_ids=(10 + i, 20, 30), n=40, seed=i, sampling=how) for i in range(6)
  ]
  one = Request("one", prompt_ids=(50, 51), sampling=Sampling(max_tokens=1))
  looks, found = {}, {}
  for fair in (False, True):
    engine, steps, results = _engine(fair=fair), 0, {}
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
    found[fair] = {
      name: [(s.ids, s.finish) for s in result.samples] for name, result in results.items()
    }
  # A sample of 16 tokens takes four looks; 240 samples on 8 slots take 30 times that.
  assert looks[True] <= 10 < 60 < looks[False], looks
  assert found[True] == found[False] and len(found[True]) == 7


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
  assert (
    len(results["short"].samples) == 3
    and engine._shape.page_length >= 80
    and engine._shape.max_tokens >= 40
  )
  assert results["long"].samples[0].finish == "stop" or len(results["long"].samples[0].ids) == 40


def test_a_shape_in_use_is_not_compiled_again_for_another_engine():
  misses = slots.functions.cache_info().misses
  _engine(), _engine()
  assert slots.functions.cache_info().misses - misses <= 1
