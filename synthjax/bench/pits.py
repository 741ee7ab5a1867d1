"""`synthjax bench pits`: the schedules of step values on simulated wrong traces, beside the full one and beside the true pit."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from synthjax.records import Verdict
from synthjax.rollout import pits, values
from synthjax.rollout.requests import Request, Result, Sample
from synthjax.rollout.schedules import Values


class Simulated(NamedTuple):
  """Traces whose prefixes have known success probabilities."""

  traces: list[values.TokenTrace]
  success: dict[tuple[int, ...], float]  # of a rollout, by the prefix's ids
  pits: list[int]


@dataclasses.dataclass(frozen=True)
class Policy:
  """An engine that knows only whether a rollout will be right: one token, 1 or 0."""

  success: dict[tuple[int, ...], float]
  fingerprint: str = "simulated"

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request."""
    for request in requests:
      right = [np.random.default_rng([request.seed, j]).random() < self.success[request.prompt_ids] for j in range(request.n)]
      yield Result(request.id, tuple(Sample(str(int(r)), (int(r),)) for r in right))


def judge(problem_id: str, given_ids: tuple[int, ...], sample: Sample) -> Verdict:
  """Of a simulated rollout."""
  return Verdict("equal" if sample.ids == (1,) else "different")


# Success probabilities as Beta(a, b), our choice: before the pit (drawn for every prefix, so that they vary within a trace) and from it on.
WORLDS = {"clean": ((16.0, 4.0), (0.3, 20.0)), "noisy": ((6.0, 3.0), (0.5, 15.0)), "hard": ((3.0, 3.0), (0.8, 10.0))}


def simulate(world: str, count: int, seed: int) -> Simulated:
  """Wrong traces of 4 to 8 steps, the pit at any of them; a trace's last step is its wrong answer."""
  random = np.random.default_rng(seed)
  before, after = WORLDS[world]
  found = Simulated([], {}, [])
  for number in range(count):
    steps = int(random.integers(4, 9))
    pit = int(random.integers(1, steps + 1))
    found.traces.append(values.TokenTrace(str(number), (number,), tuple((i,) for i in range(steps)), reward=0))
    found.pits.append(pit)
    for step in range(steps):
      found.success[(number, *range(step))] = float(random.beta(*(before if step < pit else after)))
  return found


def run(seconds: float) -> None:
  """Prints rollouts, agreement with the full schedule's pits and with the true ones, and what repeating the full schedule agrees with."""
  count = max(50, int(seconds * 10))
  for world, (before, after) in WORLDS.items():
    found = simulate(world, count, 0)
    engine, cfg = Policy(found.success), Values()
    print(f"{world}: {count} wrong traces of 4-8 steps, success Beta{before} before the pit and Beta{after} from it on, "
          f"{cfg.rollouts} rollouts a prefix")
    compared = values.compare(found.traces, engine.generate, judge, cfg)
    for name, row in compared.items():
      spent, true = row.run.spent, pits.agreement(row.run.pits, found.pits)[0]
      print(f"  {name:10} {spent.rollouts:7,} rollouts ({row.times_fewer:.2f}x fewer) in {spent.rounds:2} rounds; the full schedule's pit "
            f"in {100 * row.agreement:.1f} ± {100 * row.standard_error:.1f} % of the traces, the true pit in {100 * true:.1f} %")
    again = values.estimate(found.traces, engine.generate, judge, dataclasses.replace(cfg, seed=1))
    same = pits.agreement(again.pits, compared["full"].run.pits)[0]
    print(f"  the full schedule again with other rollouts: the same pit in {100 * same:.1f} % of the traces")
