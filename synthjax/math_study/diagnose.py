"""`synthjax values --diagnose`: is the credit of single steps worth its sampling, for a policy on its problems?

A few of its traces, rollouts from their prefixes and a second look at the pits place the problems in
the phase diagram of credit assignment (`credit_phase/diagnose.py`), where every arm is trained in a
table. Stages lie in WORKDIR/diagnose/NAME; what is finished is skipped, what was sampled is kept.
"""

import collections
import dataclasses
import math
import pathlib
import re
import threading
from collections.abc import Sequence

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
from synthjax.math_study import find_arm, preference_data
from synthjax.math_study.cell import Cell, Cost, Policy, open_cell
from synthjax.records import Ids, StepValue, Verdict
from synthjax.rollout.requests import Sample

_WRONG = 2  # incorrect traces of a problem whose steps are valued; and one correct one
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
class Sampled:
  """How much is sampled."""

  problems: int = 100
  traces: int = 8  # a problem
  rollouts: int = 8  # from every prefix of up to three traces a problem


def run(job: Job, arm: str, checkpoint: str, sampled: Sampled) -> dict:
  """Samples a policy, prints the diagnosis and writes results.json and diagnosis.txt.

  Args:
    job: of the study, or of any config that names the problems.
    arm: a policy of the study, such as `n00512_s0/sft`; its own training problems are taken.
    checkpoint: folder of a policy, where `arm` is ""; without one either it is config.train.init.
    sampled: how much to sample.

  Raises:
    ConfigError: no policy is named, or two. DataError: there is no such arm; a sample is refused.
  """
  _check(job, arm, checkpoint, sampled)
  cell, policy = _opened(job, arm, checkpoint, sampled)
  with locks.folder_lock(cell.folder, f"the diagnosis of {policy.name}"):
    problems = observe(cell, policy, sampled)
    progress.say("diagnosis: estimates, then arms in the tabular model")
    found = diagnose.estimate(problems, seed=cell.experiment.seed)
    study = job.experiment.study
    budget = Budget(
      problems=_trained_on(study, arm), traces=study.samples, rollouts=study.values.rollouts
    )
    placed = diagnose.place(found, budget, seed=cell.experiment.seed, quick=diagnose.QUICK)
    text = report(found, placed, budget, sampled)
    result = {
      "policy": {"name": arm or policy.checkpoints, "identity": policy.identity},
      "sampled": dataclasses.asdict(sampled),
      "budget": dataclasses.asdict(budget),
      "estimates": {
        name: files.without_nan(figure._asdict()) for name, figure in found.figures.items()
      },
      "placed": {**placed._asdict(), "chain": dataclasses.asdict(placed.chain)},
      "advice": diagnose.advice(placed, found.unsure),
    }
    files.write_json(cell.folder / "results.json", result)
    with files.replacing(cell.folder / "diagnosis.txt") as f:
      f.write(text + "\n")
  progress.say(f"{text}\nin {cell.folder}: results.json, diagnosis.txt")
  return result


def observe(cell: Cell, policy: Policy, sampled: Sampled) -> list[ObservedProblem]:
  """What the policy does on the problems of the cell: traces, rollouts, a second look at its pits."""
  drawn, _ = cell.sample(policy, sampled.traces)
  wanted = _valued(drawn)
  valued = _rolled_out(cell, policy, wanted, sampled)
  pits = _looked_at_again(cell, policy, wanted, valued, sampled)
  return _problems(cell, drawn, wanted, valued, pits)


def report(
  found: diagnose.Estimates, placed: diagnose.Placed, budget: Budget, sampled: Sampled
) -> str:
  """What a person reads."""
  figures = found.figures
  share, plain = _shown(100, " %"), _shown(1, "")
  points = lambda interval: (
    f"{100 * interval.value:+.0f} points ({100 * interval.low:+.0f} to {100 * interval.high:+.0f})"
  )
  chain = placed.chain
  lines = [
    f"from {sampled.problems} problems x {sampled.traces} traces, {sampled.rollouts} rollouts a prefix; 95 % intervals over problems:",
    f"  p, correct traces                        {share(figures['success'])}",
    f"  u, wrong steps that do no harm           {share(figures['survival'])}",
    f"  uncertain steps a trace                  {plain(figures['length'])}",
    f"  distinct decisions                       {plain(figures['contexts'])}",
    f"  pit precision, by fresh rollouts         {share(figures['precision'])}",
    f"in the tabular model, with N = {budget.problems}, S = {budget.traces}, n = {budget.rollouts} (computed with N = {chain.problems} and "
    f"{chain.contexts} decisions, u = {chain.survival:.2f}),",
    "credit of steps less the best control, and the range over draws of the estimates:",
    f"  for equal traces                         {points(placed.at_equal_traces)}; best: {ARMS[placed.best['traces']]}",
    f"  for equal sampling                       {points(placed.at_equal_sampling)}; best: {ARMS[placed.best['sampling']]}",
  ]
  for equal, of in placed.success.items():
    ordered = sorted(of, key=lambda name: -of[name])
    listed = ", ".join(f"{ARMS[name]} {100 * of[name]:.0f}" for name in ordered)
    lines.append(f"  success in %, equal {equal}: {listed}")
  lines.append(f"advice: {diagnose.advice(placed, found.unsure)}")
  return "\n".join(lines)


def _shown(scale: float, unit: str):
  def show(interval: diagnose.Interval) -> str:
    if math.isnan(interval.value):
      return "- (none seen)"
    value, low, high = (f"{scale * number:.3g}" for number in interval)
    return f"{value}{unit} ({low} to {high})"

  return show


def _check(job: Job, arm: str, checkpoint: str, sampled: Sampled) -> None:
  if arm and checkpoint:
    raise ConfigError(
      f"--arm {arm} and --checkpoint {checkpoint} name two policies; give one of them"
    )
  if not (arm or checkpoint or job.experiment.train.init):
    raise ConfigError(
      "no policy to diagnose: give --arm CELL/ARM of a study, --checkpoint FOLDER, or config.train.init"
    )
  if job.force:
    raise ConfigError(
      "`values --diagnose` has a stage for every kind of sample; to redo one, remove its folder instead of giving --force"
    )
  if sampled.problems < 10 or sampled.traces < 2 or sampled.rollouts < 2:
    raise ConfigError(
      f"{sampled}: expected at least 10 problems, 2 traces and 2 rollouts; fewer say nothing"
    )
  find_arm.refuse_star(job.experiment)


def _opened(job: Job, arm: str, checkpoint: str, sampled: Sampled) -> tuple[Cell, Policy]:
  """The problems and the policy; stages lie in a folder of the policy's own."""
  experiment = dataclasses.replace(
    job.experiment, study=dataclasses.replace(job.experiment.study, server=schema.StudyServer())
  )
  tokenizer: Tokenizer = jobs.tokenizer_of(job)
  count, seed, name, label = sampled.problems, 0, "policy", "checkpoint"
  if arm:
    found = find_arm.find(job, arm)
    match = re.fullmatch(r"n(\d+)_s(\d+)/([^/]+)", found.name)
    if not match:
      raise ConfigError(
        f"--arm {arm}: expected an arm of a cell below the work folder, such as n00512_s0/sft"
      )
    count, seed, name = max(int(match[1]), sampled.problems), int(match[2]), match[3]
    source, tokenizer, label = found.checkpoints, found.tokenizer, found.name.replace("/", "_")
  else:
    source = find_arm.checkpoints_in(checkpoint or experiment.train.init)
  opened = open_cell(job._replace(experiment=experiment), tokenizer, count, seed)
  cell = dataclasses.replace(
    opened, folder=job.workdir / "diagnose" / label, problems=opened.problems[: sampled.problems]
  )
  cell.folder.mkdir(parents=True, exist_ok=True)
  return cell, Policy(name, source, Cost(), Cost())


def _trained_on(study: schema.Study, arm: str) -> int:
  match = re.match(r"n(\d+)_", arm)
  return int(match[1]) if match else max(study.problems)


def _valued(drawn: Sequence[SampledTrace]) -> list[SampledTrace]:
  """The first incorrect traces of every problem, and its first correct one."""
  seen: collections.Counter[str] = collections.Counter()
  found = []
  for d in traces_to_value(drawn, _WRONG, correct_too=True):
    seen[d.problem_id] += d.reward == 1
    if d.reward == 0 or seen[d.problem_id] == 1:
      found.append(d)
  return found


@dataclasses.dataclass
class _Noting:
  """A judge that notes what it was shown. It is called from several threads."""

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
  return text[spans[0][0] : spans[0][1]].strip() if spans else ""


def _rolled_out(
  cell: Cell, policy: Policy, wanted: Sequence[SampledTrace], sampled: Sampled
) -> pathlib.Path:
  """Folder of the rollouts from every prefix of the traces, and of their values."""
  study = cell.study
  cfg = dataclasses.replace(
    study.values,
    schedule="full",
    rollouts=sampled.rollouts,
    block=sampled.rollouts,
    keep=0,
    best_of=1,
  )
  traces = preference_data.prompted(cell, wanted)

  def work(folder: pathlib.Path) -> dict:
    judge = _Noting(cell.judge, cell)
    found = values.estimate(traces, cell.sampler(policy, folder), judge, cfg)
    records.write(folder / "values.jsonl", [row for rows in found.values for row in rows])
    judge.rows.sort(key=lambda row: (row["problem_id"], row["given"], row["next"], row["correct"]))
    files.write_jsonl(folder / "rollouts.jsonl", judge.rows)
    return dataclasses.asdict(found.spent)

  how = {name: value for name, value in records.to_json(cfg).items() if name != "threads"}
  cell.stage("rollouts", [policy.identity, how, _hash(traces), cell.judging], work)
  return cell.folder / "rollouts"


def _looked_at_again(
  cell: Cell, policy: Policy, wanted: Sequence[SampledTrace], valued: pathlib.Path, sampled: Sampled
) -> dict[str, list[bool]]:
  """Problem id -> for every pit of its incorrect traces, whether fresh rollouts show a fall as the thresholds ask."""
  study = cell.study
  rows: dict[int, dict[int, StepValue]] = collections.defaultdict(dict)
  for row in records.read(StepValue, valued / "values.jsonl"):
    rows[row.trace][row.step] = row
  traces = []
  for number, d in enumerate(wanted):
    q, counts = values.evidence([rows[number].get(step) for step in range(len(d.steps) + 1)], 1)
    pit = first_pit(q, study.pairs.thresholds, counts) if d.reward == 0 else None
    if pit:
      given = cell.prompts[d.problem_id] + sum(d.steps[: pit - 1], ())
      ended = d.complete and pit == len(d.steps)
      pit_alone = dataclasses.replace(d, steps=(d.steps[pit - 1],), complete=ended)
      traces.append(PromptedTrace(given, pit_alone))
  more = _SECOND_LOOK * sampled.rollouts
  cfg = dataclasses.replace(
    study.values,
    schedule="full",
    rollouts=more,
    block=sampled.rollouts,
    keep=0,
    best_of=1,
    seed=study.values.seed + 1,
  )

  def work(folder: pathlib.Path) -> dict:
    found = values.estimate(traces, cell.sampler(policy, folder), cell.judge, cfg)
    confirmed = []
    for prompted, (before, after) in zip(traces, found.values):
      holds = (
        before.q is not None
        and after.q is not None
        and study.pairs.thresholds.hold(before.q, after.q)
      )
      confirmed.append(
        {
          "problem_id": prompted.trace.problem_id,
          "before": before.q,
          "after": after.q,
          "confirmed": bool(holds),
        }
      )
    files.write_jsonl(folder / "pits.jsonl", confirmed)
    return dataclasses.asdict(found.spent)

  how = {name: value for name, value in records.to_json(cfg).items() if name != "threads"}
  cell.stage(
    "pits",
    [policy.identity, how, dataclasses.asdict(study.pairs.thresholds), _hash(traces), cell.judging],
    work,
  )
  found = collections.defaultdict(list)
  for row in files.read_jsonl(cell.folder / "pits" / "pits.jsonl"):
    found[row["problem_id"]].append(row["confirmed"])
  return found


def _problems(
  cell: Cell,
  drawn: Sequence[SampledTrace],
  wanted: Sequence[SampledTrace],
  valued: pathlib.Path,
  pits: dict[str, list[bool]],
) -> list[ObservedProblem]:
  times: collections.Counter[tuple[str, Ids]] = collections.Counter()
  for d in wanted:
    given: Ids = ()
    for step in d.steps:
      times[d.problem_id, given] += 1
      given += tuple(step)
  by_prefix: dict[str, dict[tuple, list[dict]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in files.read_jsonl(valued / "rollouts.jsonl"):
    by_prefix[row["problem_id"]][tuple(row["given"])].append(row)
  traces: dict[str, list[SampledTrace]] = collections.defaultdict(list)
  for d in drawn:
    if d.reward is not None:
      traces[d.problem_id].append(d)
  return [
    ObservedProblem(
      correct=tuple(d.reward == 1 for d in traces[problem.id]),
      lengths=tuple(len(d.steps) for d in traces[problem.id]),
      prefixes=tuple(
        _prefix(rows, max(times[problem.id, given], 1))
        for given, rows in by_prefix[problem.id].items()
      ),
      pits=tuple(pits.get(problem.id, ())),
    )
    for problem in cell.problems
  ]


def _prefix(rows: Sequence[dict], times: int) -> ObservedPrefix:
  """What is decided at a prefix is named by its most frequent next step, among correct rollouts where there are any."""
  correct = [row["next"] for row in rows if row["correct"]]
  among = correct or [row["next"] for row in rows]
  return ObservedPrefix(
    decision=collections.Counter(among).most_common(1)[0][0],
    steps=tuple(row["next"] for row in rows),
    correct=tuple(row["correct"] for row in rows),
    times=times,
  )


def _hash(traces: Sequence[PromptedTrace]) -> str:
  return files.value_hash([trace.to_json() for trace in traces])
