"""The phase diagram of credit assignment: its chains, its grid, its planes."""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.fields import (
  Checked,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Share,
  at_least,
  distinct,
  from_to_below,
  not_empty,
)


@dataclasses.dataclass(frozen=True)
class Chain(Checked):
  """One setting of the phase diagram."""

  success: Share = 0.3  # p: share of the reference's traces that are correct
  # u: how often an incorrect step does no harm
  survival: Annotated[float, from_to_below(0, 1)] = 0.5
  length: PositiveInt = 10  # L: steps of a problem
  contexts: PositiveInt = 100  # V: distinct decisions
  traces: PositiveInt = 8  # S: sampled traces a training problem
  rollouts: NonNegativeInt = 0  # n of every step value; 0: exact values
  # when the luck of an incorrect step resolves: in the values after it, or only in the final reward
  luck: Literal["at_once", "at_end"] = "at_once"
  problems: PositiveInt = 64  # N: training problems
  actions: Annotated[int, at_least(2)] = 6  # A: of each context

  def __post_init__(self) -> None:
    super().__post_init__()
    above = f"above survival ** length, here {self.survival**self.length:.3g}, and below 1"
    self.require(self.survival**self.length < self.success < 1, "success", above)

  @property
  def harmless(self) -> float:
    """r: probability that a step of the reference does no harm; p = r ** L."""
    return self.success ** (1 / self.length)

  @property
  def correct(self) -> float:
    """c: probability of the correct action under the reference; r = c + (1 - c) u."""
    return (self.harmless - self.survival) / (1 - self.survival)

  @property
  def correct_if_harmless(self) -> float:
    """Share of correct actions among the reference's steps that do no harm."""
    return self.correct / self.harmless


@dataclasses.dataclass(frozen=True)
class Tuning(Checked):
  """The grid, and how many replicates choose and report."""

  # of Adam, before it falls linearly to zero
  rates: Annotated[tuple[PositiveFloat, ...], not_empty(), distinct()] = (0.03, 0.1, 0.3, 1.0)
  # of the losses over pairs
  betas: Annotated[tuple[PositiveFloat, ...], not_empty(), distinct()] = (0.02, 0.1, 0.5, 2.0)
  # of awr: its beta is in the unit of advantages, which are about p; as many as `betas`
  temperatures: Annotated[tuple[PositiveFloat, ...], distinct()] = (0.002, 0.01, 0.05, 0.3)
  # of the optimizer
  steps: Annotated[tuple[PositiveInt, ...], not_empty(), distinct()] = (20, 100)
  tuning_replicates: PositiveInt = 8  # on which settings are chosen
  replicates: Annotated[int, at_least(2)] = 32  # further ones that are reported

  def __post_init__(self) -> None:
    super().__post_init__()
    alike = len(self.temperatures) == len(self.betas)
    self.require(alike, "temperatures", f"as many values as betas has, {len(self.betas)}")


@dataclasses.dataclass(frozen=True)
class CreditPhase(Checked):
  """The phase diagram of credit assignment, for recipe = "credit_phase". Sizes are our choice."""

  base: Chain = Chain()  # the setting that planes vary
  # u: the axis that all planes share
  survivals: Annotated[tuple[Annotated[float, from_to_below(0, 1)], ...], not_empty()] = (
    0.0,
    0.25,
    0.5,
    0.7,
    0.85,
  )
  # p: second axis of three planes, at equal traces, at equal sampling and with luck at the end
  successes: tuple[Share, ...] = (0.05, 0.1, 0.3, 0.5, 0.7)
  lengths: tuple[PositiveInt, ...] = (2, 3, 5, 10, 20)  # L: second axis of a plane
  contexts: tuple[PositiveInt, ...] = (3, 10, 30, 100, 300)  # V: second axis of a plane
  traces: tuple[PositiveInt, ...] = (2, 4, 8, 16, 64)  # S: second axis of a plane
  rollouts: tuple[NonNegativeInt, ...] = (2, 4, 8, 16, 0)  # n: second axis of a plane; 0: exact
  priced_rollouts: tuple[PositiveInt, ...] = (2, 4)  # n of the plane at equal sampling
  sampling_rollouts: PositiveInt = 4  # n of the values in the plane of p at equal sampling
  table: tuple[Chain, ...] = ()  # settings shown with every method
  tuning: Tuning = Tuning()  # of each method in each cell
