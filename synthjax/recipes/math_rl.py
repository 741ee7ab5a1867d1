"""Study A: what N synthetic maths problems are worth under SFT, RFT, DPO, per-step DPO and advantage-weighted RL (Setlur et al. 2024).

problems + teacher traces -> SFT -> its samples -> RFT -> its samples -> step values -> pairs -> preference arms -> evaluation -> multiples.

Arms (`config.study.arms`); `sft` and, where preference arms start from it, `rft` are always trained:
  sft, sft_long (with as many tokens as rft), rft, rft_many (more right traces a problem), rft2 (a second round of likelihood on the same
  samples as the preference arms: the control), dpo, dpo_distant, step_dpo.paper|branch|step|weighted, awr, filtered_sft.
`NAME*k` is k on-policy rounds of an arm: each samples, values and starts from the policy of the round before.
"""

import dataclasses
from collections.abc import Sequence

from synthjax import files, multihost, progress
from synthjax.recipes import finetune
from synthjax.recipes.cell import Cell, Cost, Policy, open_cell, test_problems
from synthjax.recipes.finetune import Job
from synthjax.recipes.preference import tree_of
from synthjax.rollout.draw import Drawn
from synthjax.scaling import efficiency, resample
from synthjax.scaling import table as tables

# mode of the pairs, whether steps are weighted by their |advantage|, and the loss
_PAIRED = {
  "dpo": ("random", False, "dpo"), "dpo_distant": ("distant", False, "dpo"), "step_dpo.paper": ("paper", False, "step_dpo"),
  "step_dpo.branch": ("branch", False, "step_dpo"), "step_dpo.step": ("step", False, "step_dpo"),
  "step_dpo.weighted": ("random", True, "step_dpo"),
}
_ON_TREES = ("awr", "filtered_sft")  # every sampled trace with the values of all its steps
_VALUED = tuple(name for name, (mode, weighted, _) in _PAIRED.items() if weighted or mode not in ("random", "distant"))
_BY_LIKELIHOOD = ("sft", "sft_long", "rft", "rft_many", "rft2")
ARMS = (*_BY_LIKELIHOOD, *_PAIRED, *_ON_TREES)


def run(job: Job) -> dict:
  """Trains and evaluates every arm at every N and seed, and says what the problems were worth. Finished stages are skipped.

  Raises:
    ValueError: an unknown arm. DataError, TooWeakError, TrainingStopped: see the rooms; running again goes on where it stopped.
  """
  study = job.experiment.study
  _check(study.arms)
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  tokenizer, test = finetune.tokenizer_of(job), test_problems(job.experiment)
  runs: list[resample.Run] = []
  for count in sorted({*study.problems, *study.baseline_problems}):
    for seed in study.seeds:
      cell = open_cell(job, tokenizer, count, seed)
      for arm, policy in train_arms(cell, study.arms if count in study.problems else ("sft",)).items():
        marks = cell.evaluate(policy, test)
        runs.append(resample.Run(arm, count, seed, marks, policy.trained, policy.sampled))
        progress.say(f"N={count:,} seed {seed}: {arm:16} {100 * marks.mean():5.1f} %")
  return report(job, runs)


def _check(arms: Sequence[str]) -> None:
  for arm in arms:
    name, _, rounds = arm.partition("*")
    if name not in ARMS or (rounds and not (rounds.isdigit() and int(rounds) > 1 and name not in _BY_LIKELIHOOD)):
      raise ValueError(f"config.study.arms has {arm!r}; expected one of {', '.join(ARMS)}, or NAME*k (k of 2 and more) for rounds of a "
                       "preference arm")
  if multihost.is_first() is False:
    raise ValueError("recipe 'math_rl' runs in one process; give each its own config.study.problems or seeds")


def train_arms(cell: Cell, arms: Sequence[str]) -> dict[str, Policy]:
  """The policies of one cell, by arm."""
  study, train = cell.study, cell.experiment.train
  teacher = cell.teacher()
  sft = cell.by_likelihood("sft", teacher, train, None, Cost())
  found = {"sft": sft}
  if set(arms) <= {"sft"}:
    return found

  drawn, tokens = cell.sample(sft, study.samples)
  own = cell.right(drawn, study.kept)
  rft = found["rft"] = cell.by_likelihood("rft", teacher + own, study.rft, None, Cost(sft.trained, tokens))
  if "sft_long" in arms:
    longer = dataclasses.replace(train, epochs=train.epochs * (rft.trained - sft.trained) / max(sft.trained, 1))
    found["sft_long"] = cell.by_likelihood("sft_long", teacher, longer, None, Cost())
  if "rft_many" in arms:
    many, more = cell.sample(sft, study.samples_many)
    found["rft_many"] = cell.by_likelihood("rft_many", teacher + cell.right(many, study.kept_many), study.rft, None, Cost(sft.trained, more))

  start = found[study.start]
  if set(arms) - {"sft", "sft_long", "rft", "rft_many"}:
    on_policy, tokens = (drawn, 0) if study.start == "sft" else cell.sample(start, study.samples)
    sampled = Cost(start.trained, start.sampled + tokens)
    if "rft2" in arms:
      found["rft2"] = cell.by_likelihood("rft2", teacher + own + cell.right(on_policy, study.kept), study.rft, start, sampled)
    cell.check(on_policy, start)
    for arm in arms:
      if arm not in _BY_LIKELIHOOD:
        found[arm] = _preference(cell, arm, start, on_policy, sampled)
  return {arm: found[arm] for arm in arms}


def _preference(cell: Cell, arm: str, start: Policy, drawn: list[Drawn], cost: Cost) -> Policy:
  """One preference arm: as many on-policy rounds as its name says."""
  name, _, rounds = arm.partition("*")
  policy = _round(cell, name, name, start, drawn, cost)
  for number in range(2, int(rounds or 1) + 1):
    drawn, tokens = cell.sample(policy, cell.study.samples)
    policy = _round(cell, name, f"{name}*{number}", policy, drawn, Cost(policy.trained, policy.sampled + tokens))
  return policy


def _round(cell: Cell, arm: str, name: str, start: Policy, drawn: list[Drawn], cost: Cost) -> Policy:
  """Values where the arm needs them, pairs or trees, training from `start`."""
  objective = cell.experiment.objective
  samples = cell.unvalued(drawn)
  if arm in _VALUED or arm in _ON_TREES:
    samples, tokens = cell.value(start, drawn, right_too=arm in _ON_TREES or arm == "step_dpo.weighted")
    cost = Cost(cost.trained, cost.sampled + tokens)
  if arm in _ON_TREES:
    roots = cell.merged(samples)
    return cell.by_preference(name, roots, dataclasses.replace(objective, loss=arm), start, cost, splittable=True)
  mode, weighted, loss = _PAIRED[arm]
  made = cell.pairs(name, samples, dataclasses.replace(cell.study.pairs, mode=mode, weighted=weighted))
  roots = [tree_of(pair, cell.tokenizer, number) for number, pair in enumerate(made)]
  return cell.by_preference(name, roots, dataclasses.replace(objective, loss=loss), start, cost, splittable=False)


def report(job: Job, runs: Sequence[resample.Run]) -> dict:
  """Multiples with their intervals, paired differences, table and figure, in the work folder."""
  cells = resample.resample(runs, resample.Bootstrap())
  found = efficiency.analyse(cells)
  steps = [arm for arm in job.experiment.study.arms if arm.startswith("step_dpo")]
  contrasts = [("sft", "rft"), *[(other, arm) for arm in steps for other in ("rft", "rft2")]]
  differences = [efficiency.difference(cells, arm, other, count) for count in job.experiment.study.problems for arm, other in contrasts
                 if {(arm, count), (other, count)} <= set(cells)]
  result = {**found.to_json(), "differences": [dataclasses.asdict(d) for d in differences]}
  files.write_json(job.workdir / "results.json", result)
  from synthjax.report import plots

  figures = plots.efficiency_figure(found, job.workdir / "multiples")
  lines = [tables.table(found), "", *[_difference(d) for d in differences],
           f"everything is in {job.workdir}: results.json, {', '.join(path.name for path in figures)}; a folder a cell"]
  text = "\n".join(lines)
  with files.replacing(job.workdir / "table.txt") as f:
    f.write(text + "\n")
  progress.say(text)
  return result


def _difference(d: efficiency.Difference) -> str:
  return (f"N={d.problems:,}: {d.other} - {d.arm} = {100 * d.value:+.1f} points, 95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}")
