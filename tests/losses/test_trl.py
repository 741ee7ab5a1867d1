"""Every preference loss that TRL 1.16 has, against TRL's own code: loss and gradient.

TRL's trainers are made without their constructors, and a stand-in for the model gives each response
the log-probs of the test; what is run is TRL's `_compute_loss`, `concatenated_forward` and
`get_batch_loss_metrics`. Needs the parity requirements (`make parity`).

Shapes: P pairs, N responses (chosen, then rejected), T tokens with the prompt's.
"""

import collections
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.config.schema import Preference
from synthjax.losses.preference import Pairs
from synthjax.losses.registry import PAIR_LOSSES

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make parity")
pytest.importorskip("trl", reason="TRL is not installed: make parity")

PAIRS = 5
PROMPT_P = -np.linspace(3, 6, PAIRS)  # log-prob sums
PROMPT_TOKENS_P = np.array([2, 1, 5, 3, 1])  # predicted tokens


class Given(NamedTuple):
  """What a loss is computed from besides the policy's sums, float64."""

  reference_N: np.ndarray  # sums of the responses under the reference
  tokens_N: np.ndarray
  mismatched_N: np.ndarray  # log-ratios of N mismatched responses


def _numbers(seed=3):
  """(sums of N responses under the policy, what else is given)."""
  random = np.random.default_rng(seed)
  sums_N, reference_N = -random.uniform(4, 20, (2, 2 * PAIRS))
  tokens_N = random.integers(3, 9, 2 * PAIRS)
  return sums_N, Given(reference_N, tokens_N, random.uniform(-1, 4, 2 * PAIRS))


def _ours(name, cfg, sums_N, given):
  """(loss, gradient with respect to the sums of chosen and rejected responses)."""

  reference_N, tokens_N, mismatched_N = given

  def loss(sums_N):
    pairs = Pairs(
      chosen=sums_N[:PAIRS],
      rejected=sums_N[PAIRS:],
      reference_chosen=jnp.float32(reference_N[:PAIRS]),
      reference_rejected=jnp.float32(reference_N[PAIRS:]),
      chosen_tokens=jnp.float32(tokens_N[:PAIRS]),
      rejected_tokens=jnp.float32(tokens_N[PAIRS:]),
      weights=jnp.ones(PAIRS),
      mismatched_ratio=jnp.float32(mismatched_N.reshape(2, PAIRS).sum(0)),
      mismatched=jnp.full(PAIRS, 2.0),
      prompt=jnp.float32(PROMPT_P),
      prompt_tokens=jnp.float32(PROMPT_TOKENS_P),
    )
    return PAIR_LOSSES[name](pairs, cfg)[0]

  value, gradient = jax.value_and_grad(loss)(jnp.float32(sums_N))
  return float(value), np.asarray(gradient)


class _Accelerator:
  """One process."""

  device = torch.device("cpu")

  @staticmethod
  def gather(values):
    return values

  gather_for_metrics = gather


def _bare(cls, **attributes):
  """A trainer without its constructor, which would load a model and data."""
  trainer = object.__new__(cls)
  vars(trainer).update(
    accelerator=_Accelerator(),
    _metrics={"train": collections.defaultdict(list)},
    aux_loss_enabled=False,
    _total_train_tokens=0,
    _tp_size=1,
    label_smoothing=0.0,
    **attributes,
  )
  return trainer


def _mask(tokens_N, first_N=1):
  """1 for that many tokens of each row from the first on, [N, T]."""
  place_T = np.arange(np.max(first_N + tokens_N))
  first_N1 = np.broadcast_to(first_N, tokens_N.shape)[:, None]
  return torch.tensor(
    (place_T >= first_N1) & (place_T < first_N1 + tokens_N[:, None]), dtype=torch.long
  )


def _spread(sums_N, mask_NT):
  """Log-probs of the tokens of responses with these sums, [N, T - 1]."""
  return (sums_N / mask_NT.sum(1))[:, None] * mask_NT[:, 1:]


def _outputs(log_probs):
  """What TRL reads of its model; all but the log-probs is for metrics."""
  nothing = torch.zeros_like(log_probs.detach())
  return types.SimpleNamespace(
    log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
  )


def _trl_dpo(sums_N, given, beta=0.1, loss_type="sigmoid", weights=None):
  from trl.trainer.dpo_trainer import DPOTrainer

  types_ = loss_type.split("+")
  trainer = _bare(
    DPOTrainer,
    model=types.SimpleNamespace(training=True),
    beta=beta,
    loss_types=types_,
    loss_weights=weights or [1.0],
    ld_alpha=None,
    f_divergence_type="reverse_kl",
    use_weighting=False,
    precompute_ref_logps=True,
  )
  mask_NT = _mask(given.tokens_N)
  reference = torch.tensor(given.reference_N)
  inputs = {
    "input_ids": torch.zeros_like(mask_NT),
    "attention_mask": torch.ones_like(mask_NT),
    "completion_mask": mask_NT,
    "ref_chosen_logps": reference[:PAIRS],
    "ref_rejected_logps": reference[PAIRS:],
  }
  return trainer._compute_loss(lambda **_: _outputs(_spread(sums_N, mask_NT)), inputs, False)


def _trl_kto(sums_N, given, beta=0.1, loss_type="kto", desirable=1.0, undesirable=1.0):
  from trl.trainer.kto_trainer import KTOTrainer

  trainer = _bare(
    KTOTrainer,
    model=types.SimpleNamespace(training=True),
    beta=beta,
    loss_type=loss_type,
    desirable_weight=desirable,
    undesirable_weight=undesirable,
    calculate_KL=loss_type == "kto",
    precompute_ref_logps=True,
  )
  mask_NT = _mask(given.tokens_N)
  ones = torch.ones_like(mask_NT)
  reference_of_mismatched = torch.full((2 * PAIRS,), -10.0, dtype=torch.float64)
  batch = {
    "input_ids": 0 * ones,
    "attention_mask": ones,
    "completion_mask": mask_NT,
    "ref_logps": torch.tensor(given.reference_N),
    "KL_input_ids": ones,
    "KL_attention_mask": ones,
    "KL_completion_mask": mask_NT,
    "ref_KL_logps": reference_of_mismatched,
    "label": torch.arange(2 * PAIRS) < PAIRS,
  }

  def model(input_ids, **_):
    if input_ids.any():
      return _outputs(_spread(reference_of_mismatched + torch.tensor(given.mismatched_N), mask_NT))
    return _outputs(_spread(sums_N, mask_NT))

  return trainer._compute_loss(model, batch, False)


def _trl_without_reference(cls, sums_N, tokens_N, prompt, **attributes):
  """CPOTrainer or ORPOTrainer, which take log-probs from logits: two ids have any log-prob.

  Responses follow a prompt of one token, which is never predicted; of more tokens with `prompt`.
  """
  trainer = _bare(cls, is_encoder_decoder=False, padding_value=0, pad_token_id=0, **attributes)
  prompt_N = np.tile(PROMPT_TOKENS_P, 2) * prompt
  mask_NT = _mask(tokens_N, 1 + prompt_N)
  attention = _mask(1 + prompt_N + tokens_N, 0)
  log_prob = _spread(sums_N, mask_NT)
  if prompt:
    prompt_NT = torch.nn.functional.pad(_mask(prompt_N), (0, mask_NT.shape[1] - 1 - prompt_N.max()))
    log_prob = log_prob + _spread(torch.tensor(np.tile(PROMPT_P, 2)), prompt_NT)
  logit = torch.where(
    attention[:, 1:] == 1, log_prob - torch.log(-torch.expm1(log_prob.clamp(max=-1e-9))), 0.0
  )
  logits = torch.nn.functional.pad(torch.stack([logit, torch.zeros_like(logit)], -1), (0, 0, 0, 1))
  labels = torch.where(mask_NT == 1, 0, -100)
  batch = {}
  for side, rows in (("chosen", slice(0, PAIRS)), ("rejected", slice(PAIRS, None))):
    batch |= {
      f"{side}_input_ids": 0 * labels[rows],
      f"{side}_attention_mask": attention[rows],
      f"{side}_labels": labels[rows],
    }
  loss, _ = trainer.get_batch_loss_metrics(
    lambda *_, **__: types.SimpleNamespace(logits=logits), batch
  )
  return loss


def _trl_cpo(sums_N, given, **attributes):
  from trl.experimental.cpo.cpo_trainer import CPOTrainer

  return _trl_without_reference(
    CPOTrainer, sums_N, given.tokens_N, 0, alpha=0.0, cpo_alpha=0.0, **attributes
  )


def _trl_orpo(sums_N, given, beta, prompt=0):
  from trl.experimental.orpo.orpo_trainer import ORPOTrainer

  return _trl_without_reference(ORPOTrainer, sums_N, given.tokens_N, prompt, beta=beta)


def _trl_cpo_of_log_ratios(sums_N, given, **attributes):
  """CPO's loss on log-ratios is smoothed DPO and IPO of sums, which DPOTrainer does not have."""
  from trl.experimental.cpo.cpo_trainer import CPOTrainer

  trainer = _bare(CPOTrainer, alpha=0.0)
  vars(trainer).update(attributes)
  ratios = sums_N - torch.tensor(given.reference_N)
  return trainer.cpo_loss(ratios[:PAIRS], ratios[PAIRS:])[0].mean()


CASES = {
  "dpo": ("dpo", Preference(beta=0.3), _trl_dpo, {"beta": 0.3}),
  "dpo, smoothed": (
    "dpo",
    Preference(label_smoothing=0.2),
    _trl_cpo_of_log_ratios,
    {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.2},
  ),
  "ipo, our default and TRL's": ("ipo", Preference(), _trl_dpo, {"loss_type": "ipo"}),
  "ipo, sums": (
    "ipo",
    Preference(ipo_length_normalised=False),
    _trl_cpo_of_log_ratios,
    {"beta": 0.1, "loss_type": "ipo"},
  ),
  "rpo": (
    "rpo",
    Preference(rpo_alpha=0.7, nll_mean="tokens"),
    _trl_dpo,
    {"loss_type": "sigmoid+sft", "weights": [1.0, 0.7]},
  ),
  "kto, our default and TRL's": ("kto", Preference(), _trl_kto, {}),
  "kto, weighted": (
    "kto",
    Preference(beta=0.4, kto_desirable=2.0, kto_undesirable=0.5),
    _trl_kto,
    {"beta": 0.4, "desirable": 2.0, "undesirable": 0.5},
  ),
  "kto, reference point 0": (
    "kto",
    Preference(kto_reference="zero"),
    _trl_kto,
    {"loss_type": "apo_zero_unpaired"},
  ),
  "simpo": (
    "simpo",
    Preference(),
    _trl_cpo,
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
  ),
  "orpo": ("orpo", Preference(orpo_lambda=0.6, nll_mean="tokens"), _trl_orpo, {"beta": 0.6}),
  "orpo, with prompts": (
    "orpo",
    Preference(nll_mean="tokens", orpo_prompt=True),
    _trl_orpo,
    {"beta": 0.1, "prompt": 1},
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(case):
  name, cfg, peer, settings = CASES[case]
  sums_N, given = _numbers()
  leaf = torch.tensor(sums_N, requires_grad=True)
  theirs = peer(leaf, given, **settings)
  theirs.backward()
  value, gradient = _ours(name, cfg, sums_N, given)
  assert value == pytest.approx(float(theirs.detach()), rel=2e-6)
  np.testing.assert_allclose(gradient, leaf.grad, rtol=2e-5, atol=1e-8)
  assert np.abs(gradient).min() > 0, "every response is trained"


@pytest.mark.parametrize(
  ("name", "peer", "settings"),
  [
    ("rpo", _trl_dpo, {"loss_type": "sigmoid+sft", "weights": [1.0, 1.0]}),
    ("orpo", _trl_orpo, {"beta": 0.1}),
  ],
)
def test_the_default_mean_of_the_nll_is_trls_where_responses_are_equally_long_and_only_there(
  name, peer, settings
):
  sums_N, given = _numbers()

  def is_trls(given):
    theirs = float(peer(torch.tensor(sums_N), given, **settings))
    value, _ = _ours(name, Preference(), sums_N, given)
    return value == pytest.approx(theirs, rel=1e-5)

  assert is_trls(given._replace(tokens_N=np.full(2 * PAIRS, 6)))
  assert not is_trls(given)
