import jax
import jax.numpy as jnp
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
  # a prompt needs no logits
  assert both.reading == pytest.approx(0.5 * both.sampling - 5 * 2 * CFG.d_model * CFG.vocab_size)
  assert both.total == pytest.approx(both.training + both.reference + both.reading + both.sampling)


def test_attention_grows_with_what_tokens_see_and_training_sees_half_a_row():
  row = compute.mean_context([128])
  assert row == 64.5
  assert compute.flops(CFG, trained=1, mean_context=64).total == pytest.approx(
    count.training_flops(CFG, 128)
  )
  assert compute.mean_context([3, 1], before=[10, 20]) == pytest.approx((11 + 12 + 13 + 21) / 4)
  assert compute.mean_context([]) == 0
  steps = [compute.flops(CFG, sampled=1, mean_context=context).total for context in (0, 50, 100)]
  assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1]) and steps[1] > steps[0]
