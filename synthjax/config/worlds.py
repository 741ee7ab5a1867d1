"""The knobs of the embedded worlds."""

import dataclasses
from typing import Annotated

from synthjax.config.fields import Checked, NonNegativeInt, Share, from_to

LARGEST_VERBS = 1000  # of each sign


@dataclasses.dataclass(frozen=True)
class World(Checked):
  """Knobs of the shop."""

  # probability that the teacher fuses operations at a point; 0 is the negative control
  leap: Share = 0.6
  # probability that the teacher takes an event for its opposite, where the total allows it
  misread: Share = 0.0
  # plus verbs and minus verbs in use, of each sign; those beyond twelve are made-up words
  verbs: Annotated[int, from_to(1, LARGEST_VERBS)] = 12
  # most frequent verbs of each sign that the base policy has seen; at most `verbs`
  base_verbs: Annotated[int, from_to(1, LARGEST_VERBS)] = 4
  zipf: Annotated[float, from_to(0, 10)] = 1.0  # exponent of the verbs' frequencies; 0 is uniform
  largest: Annotated[int, from_to(1, 999)] = 30  # every quantity stays within 0..largest
  operand: Annotated[int, from_to(1, 999)] = 9  # an event moves 1..operand things
  # the question is how many boxes of this size the things fill; 1: how many things there are
  box: Annotated[int, from_to(1, 999)] = 1
  # share of the events that come before a recount, and whose misreading is harmless; 0: no recount
  recount: Share = 0.0
  min_events: Annotated[int, from_to(1, 8)] = 2  # fewest events of a problem
  max_events: Annotated[int, from_to(1, 8)] = 4  # most events of a problem
  seed: NonNegativeInt = 0  # of the order in which problems come and of the teacher's leaps

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, bound in (
      ("base_verbs", "verbs"),
      ("operand", "largest"),
      ("box", "largest"),
      ("min_events", "max_events"),
    ):
      most = getattr(self, bound)
      self.require(getattr(self, name) <= most, name, f"at most {bound}={most}")
    # Operations are not fused over a recount.
    self.require(not (self.recount and self.leap), "leap", f"0 where recount={self.recount:g}")


@dataclasses.dataclass(frozen=True)
class Star(Checked):
  """Knobs of the star: G(d, l, n)."""

  arms: Annotated[int, from_to(1, 100)] = 5  # d
  length: Annotated[int, from_to(1, 100)] = 5  # l, edges of an arm
  # n: nodes are named 0..n-1; the nodes of a graph are drawn from them without repetition
  labels: Annotated[int, from_to(2, 999)] = 50
  seed: NonNegativeInt = 0  # of the order in which problems come

  def __post_init__(self) -> None:
    super().__post_init__()
    nodes = self.arms * self.length + 1
    self.require(self.labels >= nodes, "labels", f"at least {nodes}, the nodes of a graph")
