import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config.presets import PRESETS
from synthjax.model import count
from synthjax.model.transformer import Transformer, sized
from synthjax.scaling import compute

CFG = sized(PRESETS["world_160k"], 60)


def test_a_forward_pass_counts_the_operations_of_the_compiled_model():
  model = Transformer(CFG)
  shape = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  hidden = jax.jit(model.hidden).lower(model.abstract(), shape, shape, shape)
  # XLA counts the body of the scan over layers once
  one_layer = hidden.cost_analysis()["flops"]
  counted = 64 * count.forward_flops(CFG, 64, head=False) / CFG.layers
  # norms, activation, softmax, rotation and the mask are what is left
  assert counted < one_layer < 1.1 * counted


def test_computes_of_stages_add_up_and_a_trained_token_takes_three_forward_passes():
  one = compute.flops(CFG, trained=10, reference=4, read=5, sampled=7, mean_context=20)
  other = compute.flops(CFG, sampled=3, mean_context=20)
  both = one + other
  assert both.sampling == pytest.approx(compute.flops(CFG, sampled=10, mean_context=20).total)
  assert both.training == pytest.approx(3 * both.sampling)
  assert both.reference == pytest.approx(0.4 * both.sampling)
  # A prompt needs no logits.
  logits = 5 * 2 * CFG.d_model * CFG.vocab_size
  assert both.reading == pytest.approx(0.5 * both.sampling - logits)
  parts = (both.training, both.reference, both.reading, both.sampling)
  assert both.total == pytest.approx(sum(parts))


def test_a_context_is_the_mean_over_tokens_of_what_they_attend_to():
  assert compute.mean_context([128]) == 64.5
  after_prompts = compute.mean_context([3, 1], before=[10, 20])
  assert after_prompts == pytest.approx((11 + 12 + 13 + 21) / 4)
  assert compute.mean_context([]) == 0


def test_training_flops_are_those_of_tokens_that_see_half_a_sequence():
  one_token = compute.flops(CFG, trained=1, mean_context=64).total
  assert one_token == pytest.approx(count.training_flops(CFG, 128))


def test_attention_grows_linearly_with_the_context():
  totals = []
  for context in (0, 50, 100):
    totals.append(compute.flops(CFG, sampled=1, mean_context=context).total)
  first, second = np.diff(totals)
  assert first > 0
  assert second == pytest.approx(first)
