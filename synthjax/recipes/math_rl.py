"""Study A: what N synthetic maths problems are worth under SFT, RFT, DPO, per-step DPO and advantage-weighted RL (Setlur et al. 2024).

problems, none of them of the evaluation, + teacher traces -> SFT -> its samples -> RFT -> its
samples -> step values -> pairs -> preference arms -> evaluation -> multiples.

Arms (`config.study.arms`); `sft` and, where preference arms start from it, `rft` are always trained:
  sft, sft_long (with as many tokens as rft), rft, rft_many (more right traces a problem), rft_clean and rft_spurious (world only: right
  traces without leaps, or with them, equally many of a problem), rft2 (a second round of likelihood on the same samples as the preference
  arms: the control), dpo, dpo_distant, step_dpo.paper|branch|step|weighted, awr, filtered_sft.
`NAME*k` is k on-policy rounds of rft2 or a preference arm: each samples and starts from the policy of the round before.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from synthjax import files, locks, progress, schema
from synthjax.errors import ConfigError
from synthjax.model import transformer
from synthjax.recipes import finetune, leaps, signals, splits
from synthjax.recipes.cell import Cell, Cost, Policy, Solution, open_cell
from synthjax.recipes.finetune import Job
from synthjax.rollout.draw import Drawn
from synthjax.scaling import compute, efficiency, noise, paired, power, resample
from synthjax.scaling import table as tables
from synthjax.scaling.efficiency import Efficiency
from synthjax.scaling.paired import Difference

# mode of the pairs, whether steps are weighted by their |advantage|, and the loss
_PAIRED: dict[str, tuple[Any, bool, Any]] = {
  "dpo": ("random", False, "dpo"), "dpo_distant": ("distant", False, "dpo"), "step_dpo.paper": ("paper", False, "step_dpo"),
  "step_dpo.branch": ("branch", False, "step_dpo"), "step_dpo.step": ("step", False, "step_dpo"),
  "step_dpo.weighted": ("random", True, "step_dpo"),
}
_ON_TREES = ("awr", "filtered_sft")  # every sampled trace with the values of all its steps
_VALUED = tuple(name for name, (mode, weighted, _) in _PAIRED.items() if weighted or mode not in ("random", "distant"))
_PICKED = ("rft_clean", "rft_spurious")
_FIRST = ("sft", "sft_long", "rft", "rft_many", *_PICKED)  # arms that need no samples of the start policy
ARMS = (*_FIRST, "rft2", *_PAIRED, *_ON_TREES)


def run(job: Job) -> dict:
  """Trains and evaluates every arm at every N and seed, and says what the problems were worth. Finished stages are skipped.

  Raises:
    ConfigError: an unknown arm. DataError, TooWeakError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  study = job.experiment.study
  _check(job.experiment)
  if job.force:
    raise ConfigError("recipe 'math_rl' has a stage for every step of every arm; to redo one, remove its folder instead of giving --force")
  finetune.check_start(job.experiment)
  finetune.say_what_is_asked(job.experiment)
  splits.check(job.experiment, job.workdir, sorted({*study.problems, *study.baseline_problems, *study.control}))
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  found, differences = _measured(job, study.problems, study.baseline_problems)
  control = None
  if study.control:
    experiment = dataclasses.replace(job.experiment, world=dataclasses.replace(job.experiment.world, leap=0.0))
    control = _measured(job._replace(experiment=experiment, workdir=job.workdir / "control"), study.control, ())[0]
  return report(job, found, differences, control)


def _measured(job: Job, problems: Sequence[int], baseline: Sequence[int]) -> tuple[Efficiency, list[Difference]]:
  """All arms at every N and seed: multiples, and paired differences between arms."""
  study, runs = job.experiment.study, []
  notes: dict[str, None] = {}  # in order
  tokenizer, test = finetune.tokenizer_of(job), splits.evaluated(job.experiment)
  model_cfg = transformer.sized(job.experiment.model, tokenizer.size)
  progress.say(power.sentence(problems, len(study.seeds), len(test)))
  plan = [(count, seed, study.arms if count in problems else ()) for count in sorted({*problems, *baseline}) for seed in study.seeds]
  # An arm takes about as long as SFT on the same problems, and with its samples more (our choice: twice).
  weights = [count * (1 + 2 * len(set(arms) - {"sft"})) for count, _, arms in plan]
  with progress.study(weights, f"{job.workdir.name}, cell") as begin:
    for count, seed, arms in plan:
      begin()
      cell = open_cell(job, tokenizer, count, seed)
      with _alone(cell):
        for arm, policy in train_arms(cell, arms).items():
          marks = cell.evaluate(policy, test)
          notes |= dict.fromkeys(policy.notes)
          took = compute.flops(model_cfg, trained=policy.trained, sampled=policy.sampled, mean_context=study.sampling.max_tokens / 2)
          runs.append(resample.Run(arm, count, seed, marks, policy.trained, policy.sampled, flops=took.total))
          progress.say(f"{job.workdir.name}, N={count:,} seed {seed}: {arm:18} {100 * marks.mean():5.1f} %")
  cells = resample.resample(runs, noise.Bootstrap())
  steps = [arm for arm in study.arms if arm.startswith("step_dpo")]
  contrasts = [("sft", "rft"), *[("rft", arm) for arm in ("rft_many", *_PICKED, "filtered_sft")], _PICKED[::-1],
               *[(other, arm) for arm in steps for other in study.arms if other.startswith(("rft", "dpo"))]]
  measured = {run.arm for run in runs}
  differences = [d for arm, other in contrasts if {arm, other} <= measured for d in paired.differences(runs, arm, other)]
  found = efficiency.analyse(cells)
  on_purpose = {str(resample.Key(arm, count)) for arm in study.arms for count in {*baseline} - {*problems}}
  missing = tuple(cell for cell in found.missing if cell not in on_purpose)
  return dataclasses.replace(found, missing=missing, notes=(*found.notes, *notes)), differences


def _alone(cell: Cell) -> contextlib.AbstractContextManager[None]:
  """Of several starts that share the work folder one works on a cell."""
  remedy = "wait for it or stop it, or give this start other config.study.seeds"
  return locks.folder_lock(cell.folder, f"study A, cell {cell.folder.name},", remedy)


def _check(experiment: schema.Experiment) -> None:
  study = experiment.study
  for arm in study.arms:
    name, _, rounds = arm.partition("*")
    if name not in ARMS or (rounds and not (rounds.isdigit() and int(rounds) > 1 and name not in _FIRST)):
      raise ConfigError(f"config.study.arms has {arm!r}; expected one of {', '.join(ARMS)}, or NAME*k (k of 2 and more) for rounds of rft2 "
                       "or a preference arm")
    if name in _PICKED and experiment.data.task != "world":
      raise ConfigError(f"config.study.arms has {arm!r}, which picks traces by their leaps; those are known in the embedded world "
                       f"alone (data.task='world'), not in task {experiment.data.task!r}: leave the arm out")
  if len({*study.problems, *study.baseline_problems}) < 2:
    raise ConfigError(f"config.study.problems is {study.problems} and baseline_problems {study.baseline_problems}: a multiple is read off "
                      "SFT at two sizes at least; name more in baseline_problems")
  if study.control and (len(set(study.control)) == 1 or experiment.data.task != "world"):
    raise ConfigError(f"config.study.control is {study.control} and data.task {experiment.data.task!r}: two sizes at least, in the "
                      "embedded world, or none")
  if experiment.data.too_long not in ("error", "drop"):
    raise ConfigError(f"config.data.too_long is {experiment.data.too_long!r}: recipe 'math_rl' trains on whole solutions; set 'error', or "
                      "'drop'")
  if jax.process_count() > 1:
    raise ConfigError("recipe 'math_rl' runs in one process; give each process its own config.study.seeds and one WORKDIR, then run all "
                      "once")


def train_arms(cell: Cell, arms: Sequence[str]) -> dict[str, Policy]:
  """The policies of one cell, by arm; `sft`, the unit of all multiples, is always there."""
  study, train = cell.study, cell.experiment.train
  teacher = cell.teacher()
  sft = cell.by_likelihood("sft", teacher, train, None, Cost())
  found = {"sft": sft}
  if set(arms) <= {"sft"}:
    return found

  drawn, tokens = cell.sample(sft, study.samples)
  own = cell.right("rft", drawn, study.kept)
  rft = found["rft"] = cell.by_likelihood("rft", teacher + own, study.rft, None, Cost(sft.trained, tokens))
  if "sft_long" in arms:
    times = (rft.trained - sft.trained) / max(sft.trained, 1)
    longer = dataclasses.replace(train, epochs=train.epochs * times, steps=round(train.steps * times))
    found["sft_long"] = cell.by_likelihood("sft_long", teacher, longer, None, Cost())
  if "rft_many" in arms:
    many, more = cell.sample(sft, study.samples_many)
    picked = cell.right("rft_many", many, study.kept_many)
    found["rft_many"] = cell.by_likelihood("rft_many", teacher + picked, study.rft, None, Cost(sft.trained, more))
  if {*_PICKED} & {*arms}:
    many, more = cell.sample(sft, study.samples_many)
    picks = leaps.picks({p.id: p.question for p in cell.problems}, many, study.kept)
    for arm, traces in zip(_PICKED, picks):
      if arm in arms:
        picked = cell.right(arm, traces, study.kept)
        found[arm] = cell.by_likelihood(arm, teacher + picked, study.rft, None, Cost(sft.trained, more))

  start = found[study.start]
  if set(arms) - set(_FIRST):
    on_policy, tokens = (drawn, tokens) if study.start == "sft" else cell.sample(start, study.samples)
    known = teacher if study.start == "sft" else teacher + own  # what the start policy was trained on
    cell.check(on_policy, start)
    for arm in arms:
      if arm not in _FIRST:
        found[arm] = _rounds(cell, arm, start, on_policy, Cost(start.trained, start.sampled + tokens), known)
  return {arm: found[arm] for arm in ("sft", *arms)}


def _rounds(cell: Cell, arm: str, start: Policy, drawn: list[Drawn], cost: Cost, solutions: list[Solution]) -> Policy:
  """As many on-policy rounds of an arm as its name says."""
  name, _, rounds = arm.partition("*")
  policy = start
  notes: tuple[str, ...] = ()
  for number in range(1, int(rounds or 1) + 1):
    if number > 1:
      drawn, tokens = cell.sample(policy, cell.study.samples)
      cost = Cost(policy.trained, policy.sampled + tokens)
    called = name if number == 1 else f"{name}*{number}"
    if name == "rft2":
      solutions = solutions + cell.right(called, drawn, cell.study.kept)
      policy = cell.by_likelihood(called, solutions, cell.study.rft, policy, cost)
    else:
      policy = _preference(cell, name, called, policy, drawn, cost)
    notes += policy.notes
  return policy._replace(notes=notes)


def _preference(cell: Cell, arm: str, called: str, start: Policy, drawn: list[Drawn], cost: Cost) -> Policy:
  """Values where the arm needs them, pairs or trees, training from `start`."""
  objective = cell.experiment.objective
  samples = signals.unvalued(cell, drawn)
  if arm in _VALUED or arm in _ON_TREES:
    samples, tokens = signals.valued(cell, start, drawn, right_too=arm in _ON_TREES or arm == "step_dpo.weighted")
    cost = Cost(cost.trained, cost.sampled + tokens)
  if arm in _ON_TREES:
    roots = signals.merged(cell, called, samples)
    return cell.by_preference(called, roots, dataclasses.replace(objective, loss=arm), start, cost, splittable=True)  # type: ignore[arg-type]
  mode, weighted, loss = _PAIRED[arm]
  roots = signals.paired(cell, called, samples, dataclasses.replace(cell.study.pairs, mode=mode, weighted=weighted))
  return cell.by_preference(called, roots, dataclasses.replace(objective, loss=loss), start, cost, splittable=False)


def report(job: Job, found: Efficiency, differences: Sequence[Difference], control: Efficiency | None) -> dict:
  """Multiples with their intervals, paired differences, table and figure, in the work folder; one start at a time."""
  with locks.folder_lock(job.workdir, "study A, its table,", patience=60.0):
    return _report(job, found, differences, control)


def _report(job: Job, found: Efficiency, differences: Sequence[Difference], control: Efficiency | None) -> dict:
  result = {**found.to_json(), "differences": [dataclasses.asdict(d) for d in differences], "control": control and control.to_json()}
  files.write_json(job.workdir / "results.json", result)
  from synthjax.report import plots

  figures = plots.efficiency_figure(found, job.workdir / "multiples", control)
  steps, controls = ([arm for arm in job.experiment.study.arms if arm.startswith(kind)] for kind in ("step_dpo", "rft"))
  lines = [tables.table(found), "", *map(str, differences), "", *tables.lower_bounds(found, steps, controls)]
  if control:
    lines += ["", "negative control, a teacher that never leaps:", tables.table(control)]
  lines.append(f"everything is in {job.workdir}: table.txt, results.json, {', '.join(path.name for path in figures)}; a folder a cell")
  with files.replacing(job.workdir / "table.txt") as f:
    f.write("\n".join(lines) + "\n")
  progress.say("\n".join(lines))
  return result
