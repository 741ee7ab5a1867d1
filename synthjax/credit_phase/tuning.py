"""Every method on its own best setting: chosen on replicates of its own, reported on others.

All methods have equally many settings: rates x betas x steps, and where a method has no beta a
finer grid of rates over the same range.

Shapes: see chains.py; G settings (rate and beta).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from synthjax import files
from synthjax.config.credit_phase import Chain, Tuning
from synthjax.credit_phase import methods, training
from synthjax.credit_phase.training import SettingsGrid

# Success from which no other rate could give much more, so that an edge of the grid is no concern.
_CEILING = 0.99


class ChosenSetting(NamedTuple):
  """A method's best setting."""

  rate: float
  beta: float
  steps: int
  success: float  # on the replicates that chose it
  at_edge: bool  # whether its rate is the smallest or the largest, and the success below 0.99


class Outcome(NamedTuple):
  """A method on one chain."""

  chosen: ChosenSetting
  success_R: list[float]  # one for each of the reported replicates


def outcomes(
  chain: Chain, wanted: tuple[str, ...], tuning: Tuning, seed: int
) -> dict[str, Outcome]:
  """Best setting of every method in `wanted`, and its success on other replicates.

  All methods learn from the same traces.
  """
  random = _random(chain, seed, "choose")
  data = methods.prepare(chain, wanted, tuning.tuning_replicates, random)
  chosen = {method: _choose(method, data, chain, tuning) for method in wanted}

  random = _random(chain, seed, "report")
  data = methods.prepare(chain, wanted, tuning.replicates, random)
  outcome_of = {}
  for method, best in chosen.items():
    settings = SettingsGrid(np.array([best.rate]), np.array([best.beta]), best.steps)
    log_prob = train(method, data, chain, settings)
    success_RG = training.success(log_prob, chain)
    outcome_of[method] = Outcome(best, success_RG[:, 0].tolist())
  return outcome_of


def train(
  method: str, data: methods.TabularData, chain: Chain, settings: SettingsGrid
) -> np.ndarray:
  """Log-probs [R V, A, G] of the method's policies."""
  if method not in methods.BY_LIKELIHOOD:
    anchor = 0.0
    if method == "rpo":
      anchor = 1.0
    return training.by_preference(data.pairs[method], anchor, chain, settings)
  if method != "awr":
    weight_K1 = data.weights[method][:, None]
    weight_KG = np.repeat(weight_K1, len(settings.rate_G), axis=1)
    return training.by_likelihood(weight_KG, chain, settings)
  # The weights of AWR depend on beta alone: computed once a beta, not once a setting.
  betas, column_G = np.unique(settings.beta_G, return_inverse=True)
  weights = [methods.advantage_weights(data.traces, chain, beta) for beta in betas]
  weight_KG = np.stack(weights, axis=1)[:, column_G]
  return training.by_likelihood(weight_KG, chain, settings)


def grid(method: str, tuning: Tuning) -> tuple[np.ndarray, np.ndarray]:
  """(rate_G, beta_G) for any one number of steps; beta is 1 where a method has none."""
  if method in methods.WITHOUT_BETA:
    count = len(tuning.rates) * len(tuning.betas)
    rate_G = np.geomspace(min(tuning.rates), max(tuning.rates), count)
    return rate_G, np.ones(count)
  betas = tuning.betas
  if method == "awr":
    betas = tuning.temperatures
  rate_G = np.repeat(tuning.rates, len(betas))
  beta_G = np.tile(betas, len(tuning.rates))
  return rate_G, beta_G


def _choose(method, data, chain, tuning) -> ChosenSetting:
  rate_G, beta_G = grid(method, tuning)
  best: ChosenSetting | None = None
  for steps in tuning.steps:
    log_prob = train(method, data, chain, SettingsGrid(rate_G, beta_G, steps))
    success_G = training.success(log_prob, chain).mean(axis=0)
    top = int(success_G.argmax())
    is_end = rate_G[top] in (rate_G.min(), rate_G.max())
    candidate = ChosenSetting(
      rate=float(rate_G[top]),
      beta=float(beta_G[top]),
      steps=steps,
      success=float(success_G[top]),
      at_edge=bool(is_end and success_G[top] < _CEILING),
    )
    if best is None or candidate.success > best.success:
      best = candidate
  assert best is not None  # Tuning refuses an empty `steps`
  return best


def _random(chain, seed, purpose) -> np.random.Generator:
  """An independent generator for every chain, seed and purpose."""
  identity = files.value_hash([dataclasses.asdict(chain), seed, purpose])
  return np.random.default_rng(int(identity[:16], 16))
