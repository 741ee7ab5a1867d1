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
from synthjax.credit_phase.methods import Pairs

_BETA1, _BETA2, _EPSILON = 0.9, 0.95, 1e-8  # of Adam, as in schema.Optimizer

Pull = Callable[[np.ndarray], np.ndarray]  # log-probs [K, G] -> what moves each of them up [K, G]


class Settings(NamedTuple):
  """Of the policies that are trained side by side."""

  rate_G: np.ndarray
  beta_G: np.ndarray  # ones where a method has none
  steps: int


def by_preference(pairs: Pairs, anchor: float, chain: Chain, settings: Settings) -> np.ndarray:
  """Minimises -log sigma(beta h) + anchor * NLL a step of the chosen side. Log-probs [R V, A, G].

  h is the difference of the sums of log-ratios of losses/preference.py; anchor 1 is RPO.
  """
  pull = pull_of_pairs(pairs, anchor, chain, settings.beta_G)
  return _train(pull, chain, _reference(chain, len(pairs.anchor_K)), settings)


def pull_of_pairs(pairs: Pairs, anchor: float, chain: Chain, beta_G: np.ndarray) -> Pull:
  """Minus the derivative by log-probs of the loss / beta, times the sum of the pairs' weights."""
  beta_G = beta_G.astype(np.float32)
  transposed_KP = pairs.difference_PK.T.tocsr()
  reference_K1 = _reference(chain, len(pairs.anchor_K))
  weight_P1 = pairs.weight_P.astype(np.float32)[:, None]
  anchor_KG = anchor * pairs.anchor_K.astype(np.float32)[:, None] / beta_G

  def pull(log_prob_KG):
    margin_PG = beta_G * (pairs.difference_PK @ (log_prob_KG - reference_K1))
    pull_PG = weight_P1 / (1 + np.exp(np.minimum(margin_PG, 80)))  # sigma(-beta h)
    return transposed_KP @ pull_PG + anchor_KG

  return pull


def by_likelihood(weight_KG: np.ndarray, chain: Chain, settings: Settings) -> np.ndarray:
  """Maximises the mean of weighted log-probs of steps. Log-probs [R V, A, G]."""
  per_replicate = weight_KG.reshape(-1, chain.contexts * chain.actions, weight_KG.shape[-1])
  total = np.maximum(per_replicate.sum(axis=1, keepdims=True), 1e-9)
  share_KG = (chain.contexts * per_replicate / total).reshape(weight_KG.shape).astype(np.float32)
  reference_K1 = _reference(chain, len(weight_KG))
  return _train(lambda log_prob_KG: share_KG, chain, reference_K1, settings)


def success(log_prob: np.ndarray, chain: Chain) -> np.ndarray:
  """Share of new problems that each policy answers correctly, exactly. [R, G]

  Contexts of a new problem are drawn uniformly and independently, so its chance is the L-th power
  of the mean over contexts of the probability that a step does no harm.
  """
  correct = np.exp(log_prob[:, chains.CORRECT].astype(float))
  harmless = correct + (1 - correct) * chain.survival
  return harmless.reshape(-1, chain.contexts, harmless.shape[-1]).mean(axis=1) ** chain.length


def _reference(chain, size) -> np.ndarray:
  """Log-probs of the reference as a column [K, 1]."""
  row = np.full(chain.actions, (1 - chain.correct) / (chain.actions - 1))
  row[chains.CORRECT] = chain.correct
  return np.tile(np.log(row), size // chain.actions)[:, None].astype(np.float32)


def _train(pull_of: Pull, chain, reference_K1, settings) -> np.ndarray:
  """Gradient ascent on table entries; `pull_of` gives the derivative by log-probs."""
  rate_G = settings.rate_G.astype(np.float32)
  logit_KG = np.repeat(reference_K1, len(rate_G), axis=1)
  mean_KG, square_KG = np.zeros_like(logit_KG), np.zeros_like(logit_KG)
  shape = (-1, chain.actions, len(rate_G))
  for step in range(settings.steps):
    log_prob = _log_softmax(logit_KG.reshape(shape))
    pull = pull_of(log_prob.reshape(logit_KG.shape)).reshape(shape)
    gradient = pull - np.exp(log_prob) * pull.sum(axis=1, keepdims=True)
    gradient_KG = gradient.reshape(logit_KG.shape)
    mean_KG += (1 - _BETA1) * (gradient_KG - mean_KG)
    square_KG += (1 - _BETA2) * (gradient_KG**2 - square_KG)
    unbiased_KG = mean_KG / (1 - _BETA1 ** (step + 1))
    scale_KG = np.sqrt(square_KG / (1 - _BETA2 ** (step + 1))) + _EPSILON
    logit_KG += rate_G * (1 - step / settings.steps) * unbiased_KG / scale_KG
  return _log_softmax(logit_KG.reshape(shape))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  """Over the actions, axis 1."""
  above = logits - logits.max(axis=1, keepdims=True)
  return above - np.log(np.exp(above).sum(axis=1, keepdims=True))
