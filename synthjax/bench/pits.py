"""`synthjax bench pits`: schedules of step values beside the full one, on simulated incorrect
traces with known pits, and on real ones.
"""

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

# Success probabilities of rollouts as Beta(a, b), our choice: before the pit, and from it on. They
# are drawn for every prefix, so that they vary within a trace.
WORLDS = {
  "clean": ((16.0, 4.0), (0.3, 20.0)),
  "noisy": ((6.0, 3.0), (0.5, 15.0)),
  "hard": ((3.0, 3.0), (0.8, 10.0)),
}
# Success probability before the pit and from it on; a single one sinks evenly to 0, where no step
# is to blame.
FALLS = ((0.6, 0.05), (0.6, 0.2), (0.4, 0.05), (0.8, 0.3), (0.6, 0.0), (0.7,))


class SimulatedTraces(NamedTuple):
  """Traces whose prefixes have known success probabilities.

  Attributes:
    traces: incorrect ones.
    success: of a rollout, by the prefix's ids.
    pits: of each trace, its pit.
  """

  traces: list[PromptedTrace]
  success: dict[tuple[int, ...], float]
  pits: list[int]


@dataclasses.dataclass(frozen=True)
class SimulatedPolicy:
  """An engine that knows only whether a rollout is correct: it samples one token, 1 or 0."""

  success: dict[tuple[int, ...], float]
  fingerprint: str = "simulated"

  def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
    """Yields one result a request."""
    for request in requests:
      samples = []
      for j in range(request.n):
        draw = np.random.default_rng([request.seed, j]).random()
        correct = int(draw < self.success[request.prompt_ids])
        samples.append(Sample(str(correct), (correct,)))
      yield Result(request.id, tuple(samples))


def judge(problem_id: str, given_ids: tuple[int, ...], sample: Sample) -> Verdict:
  """The verdict on a simulated rollout."""
  return Verdict("equal" if sample.ids == (1,) else "different")


def simulate(world: str, count: int, seed: int) -> SimulatedTraces:
  """Incorrect traces of 4 to 8 steps with the pit at any of them.

  A trace's last step is its incorrect answer.

  Args:
    world: a name of WORLDS.
    count: of traces.
    seed: of everything that is drawn.
  """
  random = np.random.default_rng(seed)
  before, after = WORLDS[world]
  simulated = SimulatedTraces([], {}, [])
  for number in range(count):
    steps = int(random.integers(4, 9))
    pit = int(random.integers(1, steps + 1))
    trace = SampledTrace(
      problem_id=str(number),
      text="",
      steps=tuple((i,) for i in range(steps)),
      verdict=Verdict("different"),
    )
    simulated.traces.append(PromptedTrace((number,), trace))
    simulated.pits.append(pit)
    for step in range(steps):
      a, b = before if step < pit else after
      simulated.success[(number, *range(step))] = float(random.beta(a, b))
  return simulated


class Rates(NamedTuple):
  """What a schedule finds in simulated incorrect traces.

  Attributes:
    true: share of the traces whose pit is found.
    false: share of the traces of which another step is named.
    rollouts: mean number a trace.
  """

  true: float
  false: float
  rollouts: float


def rates(levels: tuple[float, ...], steps: int, cfg: ValueConfig, count: int) -> Rates:
  """The rates of a schedule on simulated traces with their pit anywhere, or without one.

  Nothing is sampled: the outcomes of all rollouts are drawn beforehand, so that every schedule
  gets the same ones.

  Args:
    levels: an entry of FALLS.
    steps: of each trace.
    cfg: names the schedule.
    count: of traces.
  """
  random = np.random.default_rng([cfg.rollouts, steps])
  true = false = spent = 0
  for _ in range(count):
    pit = None
    success_S = levels[0] * (1 - np.arange(steps) / steps)
    if len(levels) == 2:
      pit = int(random.integers(1, steps + 1))
      success_S = np.where(np.arange(steps) < pit, *levels)
    outcomes_SN = random.random((steps, cfg.rollouts)) < success_S[:, None]
    correct_SN = np.cumsum(outcomes_SN, axis=1)
    counts = [Count()] * steps + [Count(ended=True, reward=0)]
    while more := SCHEDULES[cfg.schedule](counts, cfg):
      for step, asked in more.items():
        counts[step] = Count(asked, asked, int(correct_SN[step, asked - 1]))
    named = pit_of(counts, cfg)
    true += pit is not None and named == pit
    false += named not in (None, pit)
    spent += sum(prefix.asked for prefix in counts)
  return Rates(true / count, false / count, spent / count)


def run(seconds: float) -> None:
  """Prints rates of true and false pits by rollouts; then rollouts of all schedules, and agreement.

  Agreement is with the full schedule's pits, with the true ones, and of the full schedule with its
  own repetition.
  """
  _print_rates(max(100, int(seconds * 10)))
  count = max(50, int(seconds * 10))
  for world, (before, after) in WORLDS.items():
    simulated = simulate(world, count, 0)
    print(
      f"{world}: {count} incorrect traces of 4-8 steps, success Beta{before} before the pit and "
      f"Beta{after} from it on"
    )
    policy = SimulatedPolicy(simulated.success)
    _compare_schedules(simulated.traces, policy.generate, judge, simulated.pits)
  _compare_on_the_world(max(64, int(seconds * 10)))


def _print_rates(count: int) -> None:
  print(
    f"true / false pits in % of {count} incorrect traces of 8 steps (rollouts a trace), by "
    "rollouts a prefix"
  )
  for levels in FALLS:
    kind = f"success sinks evenly from {levels[0]}"
    if len(levels) == 2:
      kind = f"success {levels[0]} before the pit, {levels[1]} from it on"
    print(f"  {kind}")
    for schedule in SCHEDULES:
      cells = []
      for rollouts in (8, 16, 32, 64):
        cfg = ValueConfig(rollouts=rollouts, block=max(2, rollouts // 8), schedule=schedule)
        rate = rates(levels, 8, cfg, count)
        shares = f"{100 * rate.true:.0f} / {100 * rate.false:.0f}"
        cells.append(f"{rollouts}: {shares} ({rate.rollouts:.0f})")
      print(f"    {schedule:10} {', '.join(cells)}")


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


def _compare_on_the_world(problems: int) -> None:
  """The schedules with a real policy and verifier.

  The policy is the shipped base policy, which knows four of the world's twelve verbs.
  """
  experiment = of_the_world()
  with tempfile.TemporaryDirectory() as folder:
    job = jobs.Job(experiment, pathlib.Path(folder))
    opened = cell.open_cell(job, jobs.tokenizer_of(job), problems, 0)
    base = opened.base_policy()
    sampled = sampling.sample(opened, base, experiment.study.samples).traces
    incorrect = traces_to_value(sampled, 1, correct_too=False)
    traces = preference_data.prompted(opened, incorrect)
    correct = sum(trace.verdict.correct for trace in sampled) / len(sampled)
    print(
      f"base policy: {len(traces)} incorrect traces, one a problem of {problems}; "
      f"{100 * correct:.1f} % of its samples are correct"
    )
    engine = sampling.engine_of(experiment, opened.tokenizer, base)
    _compare_schedules(
      traces, engine.generate, opened.judge, sampling=experiment.study.values.sampling
    )


def _compare_schedules(
  traces: Sequence[PromptedTrace],
  generate: Generate,
  judge: values.RolloutJudge,
  true_pits: Sequence[int | None] | None = None,
  sampling: Sampling = Sampling(),
) -> None:
  cfg = ValueConfig(sampling=sampling)
  compared = values.compare(traces, generate, judge, cfg)
  for name, row in compared.items():
    spent = row.run.spent
    line = (
      f"  {name:10} {spent.rollouts:7,} rollouts ({row.times_fewer:.2f}x fewer) in "
      f"{spent.rounds:2} rounds; the full schedule's pit in {100 * row.agreement:.1f} ± "
      f"{100 * row.standard_error:.1f} % of the traces"
    )
    if true_pits:
      agreement, _ = pits.agreement(row.run.pits, true_pits)
      line += f", the true pit in {100 * agreement:.1f} %"
    print(line)
  again = values.estimate(traces, generate, judge, dataclasses.replace(cfg, seed=1))
  same, _ = pits.agreement(again.pits, compared["full"].run.pits)
  print(
    f"  the full schedule again with other rollouts ({cfg.rollouts} a prefix): the same pit in "
    f"{100 * same:.1f} % of the traces"
  )
