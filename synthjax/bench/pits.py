"""`synthjax bench pits`: schedules of step values beside the full one, on simulated wrong traces with known pits, and on real ones."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import config, shipped
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.config.credit import Sampling, ValueConfig
from synthjax.credit import pits, values
from synthjax.credit.schedules import SCHEDULES, Count, pit_of
from synthjax.credit.traces import PromptedTrace, SampledTrace, traces_to_value
from synthjax.math_study import cell, preference_data, sampling
from synthjax.records import Verdict
from synthjax.rollout.requests import Generate, Request, Result, Sample


class Simulated(NamedTuple):
  """Traces whose prefixes have known success probabilities."""

  traces: list[PromptedTrace]
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
      right = [
        np.random.default_rng([request.seed, j]).random() < self.success[request.prompt_ids]
        for j in range(request.n)
      ]
      yield Result(request.id, tuple(Sample(str(int(r)), (int(r),)) for r in right))


def judge(problem_id: str, given_ids: tuple[int, ...], sample: Sample) -> Verdict:
  """Of a simulated rollout."""
  return Verdict("equal" if sample.ids == (1,) else "different")


# Success probabilities as Beta(a, b), our choice: before the pit (drawn for every prefix, so that they vary within a trace) and from it on.
WORLDS = {
  "clean": ((16.0, 4.0), (0.3, 20.0)),
  "noisy": ((6.0, 3.0), (0.5, 15.0)),
  "hard": ((3.0, 3.0), (0.8, 10.0)),
}


def simulate(world: str, count: int, seed: int) -> Simulated:
  """Wrong traces of 4 to 8 steps, the pit at any of them; a trace's last step is its wrong answer."""
  random = np.random.default_rng(seed)
  before, after = WORLDS[world]
  found = Simulated([], {}, [])
  for number in range(count):
    steps = int(random.integers(4, 9))
    pit = int(random.integers(1, steps + 1))
    trace = SampledTrace(
      problem_id=str(number),
      text="",
      steps=tuple((i,) for i in range(steps)),
      verdict=Verdict("different"),
    )
    found.traces.append(PromptedTrace((number,), trace))
    found.pits.append(pit)
    for step in range(steps):
      found.success[(number, *range(step))] = float(random.beta(*(before if step < pit else after)))
  return found


class Rates(NamedTuple):
  """What a schedule finds in simulated incorrect traces."""

  true: float  # share of the traces whose pit is found
  false: float  # share of the traces of which another step is named
  rollouts: float  # a trace


# Success probability before the pit and from it on; a single one sinks evenly to 0: no step is to blame.
FALLS = ((0.6, 0.05), (0.6, 0.2), (0.4, 0.05), (0.8, 0.3), (0.6, 0.0), (0.7,))


def rates(levels: tuple[float, ...], steps: int, cfg: ValueConfig, count: int) -> Rates:
  """Of `count` traces with their pit anywhere, or without one; every schedule gets the same outcomes.

  Nothing is sampled: what the rollouts of every prefix say is drawn beforehand.
  """
  random = np.random.default_rng([cfg.rollouts, steps])
  true = false = spent = 0
  for _ in range(count):
    pit = int(random.integers(1, steps + 1)) if len(levels) == 2 else None
    if pit:
      success = np.where(np.arange(steps) < pit, *levels)
    else:
      success = levels[0] * (1 - np.arange(steps) / steps)
    correct = np.cumsum(random.random((steps, cfg.rollouts)) < success[:, None], axis=1)
    counts = [Count()] * steps + [Count(ended=True, reward=0)]
    while more := SCHEDULES[cfg.schedule](counts, cfg):
      for step, asked in more.items():
        counts[step] = Count(asked, asked, int(correct[step, asked - 1]))
    found = pit_of(counts, cfg)
    true += pit is not None and found == pit
    false += found not in (None, pit)
    spent += sum(of_prefix.asked for of_prefix in counts)
  return Rates(true / count, false / count, spent / count)


def _table(count: int) -> None:
  """Rates of true and false pits of every schedule by rollouts."""
  print(
    f"true / false pits in % of {count} incorrect traces of 8 steps (rollouts a trace), by rollouts a prefix"
  )
  for levels in FALLS:
    kind = (
      f"success {levels[0]} before the pit, {levels[1]} from it on"
      if len(levels) == 2
      else f"success sinks evenly from {levels[0]}"
    )
    print(f"  {kind}")
    for schedule in SCHEDULES:
      cells = []
      for rollouts in (8, 16, 32, 64):
        cfg = ValueConfig(rollouts=rollouts, block=max(2, rollouts // 8), schedule=schedule)
        found = rates(levels, 8, cfg, count)
        cells.append(
          f"{rollouts}: {100 * found.true:.0f} / {100 * found.false:.0f} ({found.rollouts:.0f})"
        )
      print(f"    {schedule:10} {', '.join(cells)}")


def run(seconds: float) -> None:
  """Prints rates of true and false pits by rollouts; then rollouts of every schedule, and agreement.

  Agreement is with the full schedule's pits and with the true ones, and that of repeating the full schedule.
  """
  _table(max(100, int(seconds * 10)))
  count = max(50, int(seconds * 10))
  for world, (before, after) in WORLDS.items():
    found = simulate(world, count, 0)
    print(
      f"{world}: {count} wrong traces of 4-8 steps, success Beta{before} before the pit and Beta{after} from it on"
    )
    _report(found.traces, Policy(found.success).generate, judge, found.pits)
  _on_the_world(max(64, int(seconds * 10)))


def of_the_world() -> schema.Experiment:
  """Study A's settings for the shipped base policy; no file of the repository is read."""
  return config.resolve(
    {
      "recipe": "math_rl",
      "model": "world_160k",
      "data": {"task": "world"},
      "train": {"init": str(shipped.folder("base_policy"))},
      "evaluate": {"max_new_tokens": 64},
    }
  )


def _on_the_world(problems: int) -> None:
  """The same with a real policy and verifier: wrong traces of the shipped base policy, which knows four of the world's twelve verbs."""
  experiment = of_the_world()
  with tempfile.TemporaryDirectory() as folder:
    job = jobs.Job(experiment, pathlib.Path(folder))
    on = cell.open_cell(job, jobs.tokenizer_of(job), problems, 0)
    base = on.base_policy()
    drawn = sampling.sample(on, base, experiment.study.samples).traces
    traces = preference_data.prompted(on, traces_to_value(drawn, 1, correct_too=False))
    right = sum(d.verdict.correct for d in drawn) / len(drawn)
    print(
      f"base policy: {len(traces)} wrong traces, one a problem of {problems}; {100 * right:.1f} % of its samples are right"
    )
    engine = sampling.engine_of(experiment, on.tokenizer, base)
    _report(traces, engine.generate, on.judge, None, experiment.study.values.sampling)


def _report(
  traces: Sequence[PromptedTrace],
  generate: Generate,
  judge: values.RolloutJudge,
  true: Sequence[int | None] | None,
  how: Sampling = Sampling(),
) -> None:
  cfg = ValueConfig(sampling=how)
  compared = values.compare(traces, generate, judge, cfg)
  for name, row in compared.items():
    spent = row.run.spent
    against = (
      f", the true pit in {100 * pits.agreement(row.run.pits, true)[0]:.1f} %" if true else ""
    )
    print(
      f"  {name:10} {spent.rollouts:7,} rollouts ({row.times_fewer:.2f}x fewer) in {spent.rounds:2} rounds; the full schedule's pit "
      f"in {100 * row.agreement:.1f} ± {100 * row.standard_error:.1f} % of the traces{against}"
    )
  again = values.estimate(traces, generate, judge, dataclasses.replace(cfg, seed=1))
  same = pits.agreement(again.pits, compared["full"].run.pits)[0]
  print(
    f"  the full schedule again with other rollouts ({cfg.rollouts} a prefix): the same pit in {100 * same:.1f} % of the traces"
  )
