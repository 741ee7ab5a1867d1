"""Every method on its own best setting: chosen on replicates of its own, reported on others.

All methods have equally many settings: rates x betas x steps, and where a method has no beta a
finer grid of rates over the same range.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from synthjax import files
from synthjax.config.credit_phase import Chain, Tuning
from synthjax.credit_phase import methods, training
from synthjax.credit_phase.training import Settings

_CEILING = 0.99  # success above which another rate could not matter


class Chosen(NamedTuple):
  """A method's best setting."""

  rate: float
  beta: float
  steps: int
  success: float  # on the replicates that chose it
  at_edge: bool  # whether its rate is the smallest or the largest, and the success below 0.99


class Outcome(NamedTuple):
  """A method on one chain."""

  chosen: Chosen
  success_R: list[float]  # of the replicates that are reported, one each


def outcomes(
  chain: Chain, wanted: tuple[str, ...], tuning: Tuning, seed: int
) -> dict[str, Outcome]:
  """Method -> its best setting and what that gives on other replicates, the same for all methods."""
  data = methods.prepare(chain, wanted, tuning.tuning_replicates, _random(chain, seed, "choose"))
  chosen = {method: _choose(method, data, chain, tuning) for method in wanted}
  data = methods.prepare(chain, wanted, tuning.replicates, _random(chain, seed, "report"))
  found = {}
  for method, best in chosen.items():
    settings = Settings(np.array([best.rate]), np.array([best.beta]), best.steps)
    log_prob = train(method, data, chain, settings)
    found[method] = Outcome(best, training.success(log_prob, chain)[:, 0].tolist())
  return found


def train(method: str, data: methods.Data, chain: Chain, settings: Settings) -> np.ndarray:
  """Log-probs [R V, A, G] of the method's policies."""
  if method not in methods.BY_LIKELIHOOD:
    anchor = 1.0 if method == "rpo" else 0.0
    return training.by_preference(data.pairs[method], anchor, chain, settings)
  if method == "awr":
    betas, column_G = np.unique(settings.beta_G, return_inverse=True)
    weights = [methods.advantage_weights(data.traces, chain, beta) for beta in betas]
    return training.by_likelihood(np.stack(weights, axis=1)[:, column_G], chain, settings)
  weight_KG = np.repeat(data.weights[method][:, None], len(settings.rate_G), axis=1)
  return training.by_likelihood(weight_KG, chain, settings)


def grid(method: str, tuning: Tuning) -> tuple[np.ndarray, np.ndarray]:
  """(rate, beta) of the settings with one number of steps; beta is 1 where a method has none."""
  count = len(tuning.rates) * len(tuning.betas)
  if method in methods.WITHOUT_BETA:
    return np.geomspace(min(tuning.rates), max(tuning.rates), count), np.ones(count)
  betas = tuning.temperatures if method == "awr" else tuning.betas
  return np.repeat(tuning.rates, len(betas)), np.tile(betas, len(tuning.rates))


def _choose(method, data, chain, tuning) -> Chosen:
  rate_G, beta_G = grid(method, tuning)
  found = []
  for steps in tuning.steps:
    log_prob = train(method, data, chain, Settings(rate_G, beta_G, steps))
    mean_G = training.success(log_prob, chain).mean(axis=0)
    top = int(mean_G.argmax())
    at_edge = rate_G[top] in (rate_G.min(), rate_G.max()) and mean_G[top] < _CEILING
    found.append(
      Chosen(
        rate=float(rate_G[top]),
        beta=float(beta_G[top]),
        steps=steps,
        success=float(mean_G[top]),
        at_edge=bool(at_edge),
      )
    )
  return max(found, key=lambda each: each.success)


def _random(chain, seed, purpose) -> np.random.Generator:
  """A generator of its own for every chain, seed and purpose."""
  named = files.value_hash([dataclasses.asdict(chain), seed, purpose])
  return np.random.default_rng(int(named[:16], 16))
