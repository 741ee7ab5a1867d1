"""`synthjax values --diagnose`: is the credit of single steps worth its sampling, for a policy?

A few traces of the policy on its problems, rollouts from their prefixes and a second look at the
pits place the problems in the phase diagram of credit assignment (`credit_phase/diagnose.py`),
where every arm is trained in a table. Stages lie in WORKDIR/diagnose/NAME; what is finished is
skipped, what was sampled is kept.
"""

import collections
import dataclasses
import math
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthjax import files, locks, progress, records
from synthjax import job as jobs
from synthjax.config import schema
from synthjax.credit import steps, values
from synthjax.credit.pits import first_pit
from synthjax.credit.traces import Judge, PromptedTrace, SampledTrace, traces_to_value
from synthjax.credit_phase import diagnose
from synthjax.credit_phase.diagnose import Budget, ObservedProblem
from synthjax.credit_phase.likelihood import ObservedPrefix
from synthjax.data.tokenizers import Tokenizer
from synthjax.errors import ConfigError
from synthjax.job import Job
from synthjax.math_study import preference_data, sampling, study_folder
from synthjax.math_study.cell import Cell, Cost, TrainedPolicy, open_cell
from synthjax.recipes import study_policies
from synthjax.records import Ids, StepValue, Verdict
from synthjax.rollout.requests import Sample

_INCORRECT = 2  # incorrect traces of a problem whose steps are valued; and one correct one
_SECOND_LOOK = 4  # times as many rollouts say whether a pit is one

# Names of the diagram's methods as arms of a study.
ARMS = {
  "rft": "rft",
  "chosen_only": "chosen_only",
  "dpo": "dpo",
  "dpo_fresh": "dpo, with fresh positives",
  "rpo": "dpo, with an NLL anchor",
  "branch": "step_dpo.branch",
  "step": "step_dpo.step",
  "weighted": "step_dpo.weighted",
  "awr": "awr",
}


@dataclasses.dataclass(frozen=True)
class SampleCounts:
  """How much is sampled."""

  problems: int = 100
  traces: int = 8  # a problem
  rollouts: int = 8  # from every prefix of up to three traces a problem


class Rollouts(NamedTuple):
  """Rollouts from every prefix of some traces."""

  traces: list[SampledTrace]
  folder: pathlib.Path  # of the stage


def run(job: Job, arm: str, checkpoint: str, counts: SampleCounts) -> dict:
  """Samples a policy, prints the diagnosis and writes results.json and diagnosis.txt.

  Args:
    job: of the study, or of any config that names the problems.
    arm: a policy of the study, such as `n00512_s0/sft`; its own training problems are taken.
    checkpoint: folder of a policy, where `arm` is ""; without one either it is config.train.init.
    counts: how much to sample.

  Raises:
    ConfigError: no policy is named, or two. DataError: there is no such arm; a sample is refused.
  """
  _check(job, arm, checkpoint, counts)
  cell, policy = _opened(job, arm, checkpoint, counts)
  with locks.folder_lock(cell.folder, f"the diagnosis of {policy.name}"):
    problems = observe(cell, policy, counts)
    progress.say("diagnosis: estimates, then arms in the tabular model")
    estimates = diagnose.estimate(problems, seed=cell.experiment.seed)
    study = job.experiment.study
    budget = Budget(
      problems=_trained_on(study, arm), traces=study.samples, rollouts=study.values.rollouts
    )
    placed = diagnose.place(estimates, budget, seed=cell.experiment.seed, quick=diagnose.QUICK)
    text = report(estimates, placed, budget, counts)
    figures = {}
    for name, figure in estimates.figures.items():
      figures[name] = files.without_nan(figure._asdict())
    result = {
      "policy": {"name": arm or policy.checkpoints, "identity": policy.identity},
      "sampled": dataclasses.asdict(counts),
      "budget": dataclasses.asdict(budget),
      "estimates": figures,
      "placed": {**placed._asdict(), "chain": dataclasses.asdict(placed.chain)},
      "advice": diagnose.advice(placed, estimates.unsure),
    }
    files.write_json(cell.folder / "results.json", result)
    with files.replacing(cell.folder / "diagnosis.txt") as f:
      f.write(text + "\n")
  progress.say(f"{text}\nin {cell.folder}: results.json, diagnosis.txt")
  return result


def observe(cell: Cell, policy: TrainedPolicy, counts: SampleCounts) -> list[ObservedProblem]:
  """What the policy does on the cell's problems: traces, rollouts, a second look at its pits."""
  drawn = sampling.sample(cell, policy, counts.traces).traces
  rollouts = _roll_out(cell, policy, _traces_to_value(drawn), counts)
  pits = _look_again(cell, policy, rollouts, counts)
  return _problems(cell, drawn, rollouts, pits)


def report(
  estimates: diagnose.Estimates,
  placed: diagnose.Placed,
  budget: Budget,
  counts: SampleCounts,
) -> str:
  """What a person reads."""
  figures, chain = estimates.figures, placed.chain
  lines = [
    f"from {counts.problems} problems x {counts.traces} traces, {counts.rollouts} rollouts a "
    "prefix; 95 % intervals over problems:",
    f"  p, correct traces                        {_share(figures['success'])}",
    f"  u, wrong steps that do no harm           {_share(figures['survival'])}",
    f"  uncertain steps a trace                  {_number(figures['length'])}",
    f"  distinct decisions                       {_number(figures['contexts'])}",
    f"  pit precision, by fresh rollouts         {_share(figures['precision'])}",
    f"in the tabular model, with N = {budget.problems}, S = {budget.traces}, n = {budget.rollouts} "
    f"(computed with N = {chain.problems} and {chain.contexts} decisions, u = "
    f"{chain.survival:.2f}),",
    "credit of steps less the best control, and the range over draws of the estimates:",
    f"  for equal traces                         {_points(placed.at_equal_traces)}; best: "
    f"{ARMS[placed.best['traces']]}",
    f"  for equal sampling                       {_points(placed.at_equal_sampling)}; best: "
    f"{ARMS[placed.best['sampling']]}",
  ]
  for equal, success in placed.success.items():
    ordered = sorted(success, key=lambda name: -success[name])
    listed = ", ".join(f"{ARMS[name]} {100 * success[name]:.0f}" for name in ordered)
    lines.append(f"  success in %, equal {equal}: {listed}")
  lines.append(f"advice: {diagnose.advice(placed, estimates.unsure)}")
  return "\n".join(lines)


def _share(interval: diagnose.Interval) -> str:
  return _interval(interval, 100, " %")


def _number(interval: diagnose.Interval) -> str:
  return _interval(interval, 1, "")


def _interval(interval: diagnose.Interval, scale: float, unit: str) -> str:
  if math.isnan(interval.value):
    return "- (none seen)"
  value, low, high = (f"{scale * number:.3g}" for number in interval)
  return f"{value}{unit} ({low} to {high})"


def _points(interval: diagnose.Interval) -> str:
  value, low, high = (f"{100 * number:+.0f}" for number in interval)
  return f"{value} points ({low} to {high})"


def _check(job: Job, arm: str, checkpoint: str, counts: SampleCounts) -> None:
  if arm and checkpoint:
    raise ConfigError(
      f"--arm {arm} and --checkpoint {checkpoint} name two policies; give one of them"
    )
  if not (arm or checkpoint or job.experiment.train.init):
    raise ConfigError(
      "no policy to diagnose: give --arm CELL/ARM of a study, --checkpoint FOLDER, or "
      "config.train.init"
    )
  if job.force:
    raise ConfigError(
      "`values --diagnose` has a stage for every kind of sample; to redo one, remove its folder "
      "instead of giving --force"
    )
  if counts.problems < 10 or counts.traces < 2 or counts.rollouts < 2:
    raise ConfigError(
      f"{counts.problems} problems, {counts.traces} traces, {counts.rollouts} rollouts: expected "
      "at least 10 problems, 2 traces and 2 rollouts; fewer say nothing"
    )
  study_policies.refuse_star(job.experiment)


def _opened(
  job: Job, arm: str, checkpoint: str, counts: SampleCounts
) -> tuple[Cell, TrainedPolicy]:
  """The problems and the policy; stages lie in a folder of the policy's own."""
  # The policy is here: it is not asked for at the study's server.
  study = dataclasses.replace(job.experiment.study, server=schema.StudyServer())
  experiment = dataclasses.replace(job.experiment, study=study)
  tokenizer: Tokenizer = jobs.tokenizer_of(job)
  count, seed, name, label = counts.problems, 0, "policy", "checkpoint"
  if arm:
    found = study_policies.find(job, arm)
    folder, _, name = found.name.rpartition("/")
    key = study_folder.cell_key(folder)
    if key is None:
      raise ConfigError(
        f"--arm {arm}: expected an arm of a cell below the work folder, such as n00512_s0/sft"
      )
    count, seed = max(key.problems, counts.problems), key.seed
    source, tokenizer, label = found.checkpoints, found.tokenizer, found.name.replace("/", "_")
  else:
    source = study_policies.checkpoints_in(checkpoint or experiment.train.init)
  opened = open_cell(job._replace(experiment=experiment), tokenizer, count, seed)
  folder_of_policy = job.workdir / "diagnose" / label
  folder_of_policy.mkdir(parents=True, exist_ok=True)
  problems = opened.problems[: counts.problems]
  cell = dataclasses.replace(opened, folder=folder_of_policy, problems=problems)
  return cell, TrainedPolicy(name, source, Cost(), Cost())


def _trained_on(study: schema.Study, arm: str) -> int:
  key = study_folder.cell_key(arm.partition("/")[0])
  return key.problems if key else max(study.problems)


def _traces_to_value(drawn: Sequence[SampledTrace]) -> list[SampledTrace]:
  """The first incorrect traces of every problem, and its first correct one."""
  correct: collections.Counter[str] = collections.Counter()
  wanted = []
  for d in traces_to_value(drawn, _INCORRECT, correct_too=True):
    correct[d.problem_id] += d.reward == 1
    if d.reward == 0 or correct[d.problem_id] == 1:
      wanted.append(d)
  return wanted


@dataclasses.dataclass
class _RecordingJudge:
  """A judge that records the rollouts it was shown. It is called from several threads."""

  judge: Judge
  cell: Cell

  def __post_init__(self) -> None:
    self.rows: list[dict] = []
    self.lock = threading.Lock()

  def __call__(self, problem_id: str, given_ids: Ids, sample: Sample) -> Verdict:
    verdict = self.judge(problem_id, given_ids, sample)
    if verdict.reward is not None:
      row = {
        "problem_id": problem_id,
        "given": list(given_ids),
        "next": _first_step(self.cell, sample.ids),
        "correct": verdict.correct,
      }
      with self.lock:
        self.rows.append(row)
    return verdict


def _first_step(cell: Cell, ids: Sequence[int]) -> str:
  text = cell.tokenizer.decode(ids)
  spans = steps.spans(text, cell.splitting.rule, cell.splitting.limit)
  if not spans:
    return ""
  start, end = spans[0]
  return text[start:end].strip()


def _roll_out(
  cell: Cell, policy: TrainedPolicy, wanted: list[SampledTrace], counts: SampleCounts
) -> Rollouts:
  """Rollouts from every prefix of the traces, and their values."""
  cfg = _every_prefix(cell.study, counts.rollouts, counts, cell.study.values.seed)
  traces = preference_data.prompted(cell, wanted)

  def work(folder: pathlib.Path) -> dict:
    judge = _RecordingJudge(cell.judge, cell)
    found = values.estimate(traces, sampling.sampler(cell, policy, folder), judge, cfg)
    records.write(folder / "values.jsonl", [row for rows in found.values for row in rows])
    # Threads record in any order.
    judge.rows.sort(key=lambda row: (row["problem_id"], row["given"], row["next"], row["correct"]))
    files.write_jsonl(folder / "rollouts.jsonl", judge.rows)
    return dataclasses.asdict(found.spent)

  inputs = [
    policy.identity,
    preference_data.settings_of(cfg),
    preference_data.hash_of(traces),
    cell.judging,
  ]
  cell.stage("rollouts", inputs, work)
  return Rollouts(wanted, cell.folder / "rollouts")


def _every_prefix(study: schema.Study, rollouts: int, counts: SampleCounts, seed: int):
  """The study's settings of step values, for as many rollouts from every prefix."""
  return dataclasses.replace(
    study.values,
    schedule="full",
    rollouts=rollouts,
    block=counts.rollouts,
    keep=0,
    best_of=1,
    seed=seed,
  )


def _look_again(
  cell: Cell, policy: TrainedPolicy, rollouts: Rollouts, counts: SampleCounts
) -> dict[str, list[bool]]:
  """Problem id -> for every pit of its traces, whether fresh rollouts confirm its fall."""
  study = cell.study
  thresholds = study.pairs.thresholds
  traces = _pit_steps(cell, rollouts)
  more = _SECOND_LOOK * counts.rollouts
  # Another seed: the rollouts that found the pit must not confirm it.
  cfg = _every_prefix(study, more, counts, study.values.seed + 1)

  def work(folder: pathlib.Path) -> dict:
    found = values.estimate(traces, sampling.sampler(cell, policy, folder), cell.judge, cfg)
    rows = []
    for prompted, (before, after) in zip(traces, found.values):
      confirmed = _is_confirmed(thresholds, before, after)
      row = {"problem_id": prompted.trace.problem_id, "before": before.q, "after": after.q}
      rows.append({**row, "confirmed": confirmed})
    files.write_jsonl(folder / "pits.jsonl", rows)
    return dataclasses.asdict(found.spent)

  inputs = [
    policy.identity,
    preference_data.settings_of(cfg),
    dataclasses.asdict(thresholds),
    preference_data.hash_of(traces),
    cell.judging,
  ]
  cell.stage("pits", inputs, work)
  confirmed = collections.defaultdict(list)
  for row in files.read_jsonl(cell.folder / "pits" / "pits.jsonl"):
    confirmed[row["problem_id"]].append(row["confirmed"])
  return confirmed


def _is_confirmed(thresholds, before: StepValue, after: StepValue) -> bool:
  if before.q is None or after.q is None:
    return False
  return bool(thresholds.hold(before.q, after.q))


def _pit_steps(cell: Cell, rollouts: Rollouts) -> list[PromptedTrace]:
  """The pits of incorrect traces, each as a trace of one step after the prefix before it."""
  traces = []
  rows = study_folder.step_values(rollouts.folder, rollouts.traces)
  for d, own in zip(rollouts.traces, rows, strict=True):
    if d.reward != 0:
      continue
    q, evidence = values.evidence(own, 1)
    pit = first_pit(q, cell.study.pairs.thresholds, evidence)
    if not pit:
      continue
    given = cell.prompts[d.problem_id] + sum(d.steps[: pit - 1], ())
    ended = d.complete and pit == len(d.steps)
    pit_alone = dataclasses.replace(d, steps=(d.steps[pit - 1],), complete=ended)
    traces.append(PromptedTrace(given, pit_alone))
  return traces


def _problems(
  cell: Cell, drawn: Sequence[SampledTrace], rollouts: Rollouts, pits: Mapping[str, Sequence[bool]]
) -> list[ObservedProblem]:
  """What was seen of every problem, as the diagram takes it."""
  times = _times(rollouts.traces)
  prefixes: dict[str, dict[Ids, list[dict]]] = collections.defaultdict(dict)
  for row in files.read_jsonl(rollouts.folder / "rollouts.jsonl"):
    prefixes[row["problem_id"]].setdefault(tuple(row["given"]), []).append(row)
  judged: dict[str, list[SampledTrace]] = collections.defaultdict(list)
  for d in drawn:
    if d.reward is not None:
      judged[d.problem_id].append(d)
  problems = []
  for problem in cell.problems:
    seen = []
    for given, rows in prefixes[problem.id].items():
      seen.append(_prefix(rows, max(times[problem.id, given], 1)))
    traces = judged[problem.id]
    problems.append(
      ObservedProblem(
        correct=tuple(d.reward == 1 for d in traces),
        lengths=tuple(len(d.steps) for d in traces),
        prefixes=tuple(seen),
        pits=tuple(pits.get(problem.id, ())),
      )
    )
  return problems


def _times(traces: Sequence[SampledTrace]) -> collections.Counter[tuple[str, Ids]]:
  """How many of the traces pass through a prefix, (problem id, ids of its steps)."""
  times: collections.Counter[tuple[str, Ids]] = collections.Counter()
  for d in traces:
    given: Ids = ()
    for step in d.steps:
      times[d.problem_id, given] += 1
      given += tuple(step)
  return times


def _prefix(rows: Sequence[dict], times: int) -> ObservedPrefix:
  """What is decided at a prefix is named by its most frequent next step.

  It is that among correct rollouts where there are any.
  """
  correct = [row["next"] for row in rows if row["correct"]]
  among = correct or [row["next"] for row in rows]
  return ObservedPrefix(
    decision=collections.Counter(among).most_common(1)[0][0],
    steps=tuple(row["next"] for row in rows),
    correct=tuple(row["correct"] for row in rows),
    times=times,
  )
