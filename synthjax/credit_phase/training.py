"""Trains tabular policies of all replicates and settings at once, and scores them exactly.

Full-batch Adam whose rate falls linearly to zero, so that no policy ends in an overshoot: plain
gradient descent with a large rate would, and an overshoot sharpens any policy, whatever it learned.

Shapes: see chains.py; P pairs, G settings (rate and beta).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from synthjax.config.credit_phase import Chain
from synthjax.credit_phase import chains
from synthjax.credit_phase.methods import TabularPairs

# Of Adam, as in schema.Optimizer.
_BETA1 = 0.9
_BETA2 = 0.95
_EPSILON = 1e-8

Pull = Callable[[np.ndarray], np.ndarray]  # log-probs [K, G] -> the ascent direction for them


class SettingsGrid(NamedTuple):
  """Settings of the policies that are trained side by side."""

  rate_G: np.ndarray
  beta_G: np.ndarray  # ones where a method has none
  steps: int


def by_preference(
  pairs: TabularPairs, anchor: float, chain: Chain, settings: SettingsGrid
) -> np.ndarray:
  """Minimises -log sigma(beta h) + anchor * NLL a step of the chosen side. Log-probs [R V, A, G].

  h is the difference of the sums of log-ratios, as in losses/preference.py; anchor 1 is RPO.
  """
  pull = pull_of_pairs(pairs, anchor, chain, settings.beta_G)
  reference_K1 = _reference(chain, len(pairs.anchor_K))
  return _train(pull, chain, reference_K1, settings)


def pull_of_pairs(pairs: TabularPairs, anchor: float, chain: Chain, beta_G: np.ndarray) -> Pull:
  """Minus the derivative by log-probs of the loss / beta, times the sum of the pairs' weights."""
  beta_G = beta_G.astype(np.float32)
  transposed_KP = pairs.difference_PK.T.tocsr()
  reference_K1 = _reference(chain, len(pairs.anchor_K))
  weight_P1 = pairs.weight_P.astype(np.float32)[:, None]
  anchor_K1 = pairs.anchor_K.astype(np.float32)[:, None]
  anchor_KG = anchor * anchor_K1 / beta_G

  def pull(log_prob_KG):
    margin_PG = beta_G * (pairs.difference_PK @ (log_prob_KG - reference_K1))
    # sigma(-margin); exp overflows float32 above 88.
    pull_PG = weight_P1 / (1 + np.exp(np.minimum(margin_PG, 80)))
    return transposed_KP @ pull_PG + anchor_KG

  return pull


def by_likelihood(weight_KG: np.ndarray, chain: Chain, settings: SettingsGrid) -> np.ndarray:
  """Maximises the mean of weighted log-probs of steps. Log-probs [R V, A, G]."""
  table_size = chain.contexts * chain.actions
  weight = weight_KG.reshape(-1, table_size, weight_KG.shape[-1])
  total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
  share = chain.contexts * weight / total
  share_KG = share.reshape(weight_KG.shape).astype(np.float32)

  def pull(log_prob_KG):
    return share_KG

  return _train(pull, chain, _reference(chain, len(weight_KG)), settings)


def success(log_prob: np.ndarray, chain: Chain) -> np.ndarray:
  """Share of new problems that each policy answers correctly, exactly. [R, G]

  Contexts of a new problem are drawn uniformly and independently, so its probability is the L-th
  power of the mean over contexts of the probability that a step does no harm.
  """
  correct = np.exp(log_prob[:, chains.CORRECT].astype(float))
  harmless = correct + (1 - correct) * chain.survival
  harmless = harmless.reshape(-1, chain.contexts, harmless.shape[-1])
  return harmless.mean(axis=1) ** chain.length


def _reference(chain, size) -> np.ndarray:
  """Log-probs of the reference as a column [K, 1]."""
  prob_A = np.full(chain.actions, (1 - chain.correct) / (chain.actions - 1))
  prob_A[chains.CORRECT] = chain.correct
  log_prob_K = np.tile(np.log(prob_A), size // chain.actions)
  return log_prob_K[:, None].astype(np.float32)


def _train(pull_of: Pull, chain, reference_K1, settings) -> np.ndarray:
  """Gradient ascent on table entries; `pull_of` gives the derivative by log-probs."""
  rate_G = settings.rate_G.astype(np.float32)
  logit_KG = np.repeat(reference_K1, len(rate_G), axis=1)
  mean_KG = np.zeros_like(logit_KG)
  square_KG = np.zeros_like(logit_KG)
  by_context = (-1, chain.actions, len(rate_G))
  for step in range(settings.steps):
    log_prob = _log_softmax(logit_KG.reshape(by_context))
    log_prob_KG = log_prob.reshape(logit_KG.shape)
    pull = pull_of(log_prob_KG).reshape(by_context)
    gradient = pull - np.exp(log_prob) * pull.sum(axis=1, keepdims=True)
    gradient_KG = gradient.reshape(logit_KG.shape)
    mean_KG += (1 - _BETA1) * (gradient_KG - mean_KG)
    square_KG += (1 - _BETA2) * (gradient_KG**2 - square_KG)
    unbiased_KG = mean_KG / (1 - _BETA1 ** (step + 1))
    scale_KG = np.sqrt(square_KG / (1 - _BETA2 ** (step + 1))) + _EPSILON
    remaining = 1 - step / settings.steps
    logit_KG += rate_G * remaining * unbiased_KG / scale_KG
  return _log_softmax(logit_KG.reshape(by_context))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  """Over the actions, axis 1."""
  above = logits - logits.max(axis=1, keepdims=True)
  total = np.exp(above).sum(axis=1, keepdims=True)
  return above - np.log(total)
