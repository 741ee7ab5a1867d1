"""The arms of study A: what each is trained on, and in which order.

Names follow Setlur et al. 2024 (arXiv 2406.14532). By likelihood:
  sft           the teacher's correct traces
  rft           these and distinct correct traces sampled from sft; from the base policy
  rft_many      the same with more of them
  rft_equal     the same with as many more samples as the step values' rollouts cost
  sft_long      sft for as many tokens as rft
  rft_clean, rft_spurious   world only: correct traces without leaps, or with them
  rft2, rft2_equal          from the start policy, with correct traces of its samples
From pairs or trees of the start policy's samples, which is their reference:
  dpo, rpo, dpo_distant     a whole correct trace against a whole incorrect one; rpo is anchored
  dpo_equal     dpo with as many more samples as the step values' rollouts cost
  step_dpo.paper, branch, step    see credit/pairs.py
  step_dpo.weighted         whole traces, every step weighted by its |advantage|
  chosen_only   likelihood on the chosen sides of branch's pairs: without its negatives
  random_step, last_step    step_dpo.paper cut after a random step, or the last one, not the pit
  awr, filtered_sft         all sampled traces, step by step with their advantages
All that learn from pairs have one loss, `step_dpo`, whose weights are all 1 for whole traces.
`NAME*k` is k on-policy rounds: each samples and starts from the policy of the round before.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from synthjax.config import schema
from synthjax.config.credit import PairMode, PitChoice
from synthjax.credit.traces import SampledTrace
from synthjax.data import trees
from synthjax.math_study import clean_picks, preference_data
from synthjax.math_study.cell import Cell, Cost, Policy, Solution
from synthjax.math_study.settings import Setting


class Paired(NamedTuple):
  """Which pairs an arm learns from."""

  mode: PairMode
  pit: PitChoice = "first"
  weighted: bool = False
  chosen_only: bool = False
  anchored: bool = False  # always with the anchor
  equal: bool = False  # from as many samples as the step values' rollouts would have bought


PAIRED = {
  "dpo": Paired("random"),
  "rpo": Paired("random", anchored=True),
  "dpo_distant": Paired("distant"),
  "dpo_equal": Paired("random", equal=True),
  "step_dpo.paper": Paired("paper"),
  "step_dpo.branch": Paired("branch"),
  "step_dpo.step": Paired("step"),
  "step_dpo.weighted": Paired("random", weighted=True),
  "chosen_only": Paired("branch", chosen_only=True),
  "random_step": Paired("paper", pit="random"),
  "last_step": Paired("paper", pit="last"),
}
ON_TREES = ("awr", "filtered_sft")  # every sampled trace with the values of all its steps
PICKED = ("rft_clean", "rft_spurious")
FROM_BASE = ("sft", "sft_long", "rft", "rft_many", "rft_equal", *PICKED)
ON_POLICY = ("rft2", "rft2_equal", *PAIRED, *ON_TREES)
ARMS = (*FROM_BASE, *ON_POLICY)
# Every control of the arms that know the step.
CONTROLS = (
  "rft",
  "rft_equal",
  "rft2",
  "rft2_equal",
  "chosen_only",
  "dpo",
  "rpo",
  "dpo_distant",
  "dpo_equal",
  "random_step",
  "last_step",
)
CREDITED = (
  "step_dpo.paper",
  "step_dpo.branch",
  "step_dpo.step",
  "step_dpo.weighted",
  "awr",
  "filtered_sft",
)

Learn = Callable[[str, Setting], Policy]  # (name of the policy, settings) -> the trained policy
Choose = Callable[[str, Learn], Policy]  # trains an arm with the settings that are chosen for it


def tuned_as(arm: str) -> str:
  """The arm whose tuned settings an arm has: rounds have those of the first, sft_long those of sft."""
  name = arm.partition("*")[0]
  return "sft" if name == "sft_long" else name


def kind_of(arm: str) -> str:
  """Which settings an arm has.

  sft; likelihood, from the base policy; resumed, by likelihood from the start policy; positives, of
  pairs or steps alone; pairs; advantage.
  """
  name = tuned_as(arm)
  if name == "sft":
    return name
  if name in FROM_BASE:
    return "likelihood"
  if name == "awr":
    return "advantage"
  if name in ("rft2", "rft2_equal"):
    return "resumed"
  if name in ("filtered_sft", "chosen_only"):
    return "positives"
  return "pairs"


def anchored(arm: str) -> bool:
  """Whether an arm is never without the anchor."""
  return arm in PAIRED and PAIRED[arm].anchored


class Arms:
  """Trains the arms of one cell; what they share is made once.

  Args:
    cell: N problems and a seed.
    choose: trains an arm with the settings chosen for it.
  """

  def __init__(self, cell: Cell, choose: Choose):
    self.cell, self.choose = cell, choose
    self.found: dict[str, Policy] = {}
    self._teacher: list[Solution] = []
    self._trained_on: dict[str, list[Solution]] = {}  # by the name of an arm trained by likelihood
    self._drawn: dict[tuple[str, int], tuple[list[SampledTrace], Cost]] = {}

  def policy(self, arm: str) -> Policy:
    """The trained policy of an arm, and of all that it stands on.

    Raises:
      TooWeakError, DataError, TrainingStopped: see `cell`.
    """
    if arm not in self.found:
      self.found[arm] = self._train(arm)
    return self.found[arm]

  def _train(self, arm: str) -> Policy:
    name, _, rounds = arm.partition("*")
    if rounds:
      return self._round(name, int(rounds))
    if name == "sft":
      return self._by_likelihood(arm, self.teacher(), self.cell.experiment.train, Cost())
    if name == "sft_long":
      return self._sft_long()
    if name in FROM_BASE:
      return self._rft(arm)
    start = self.policy(self.cell.study.start)
    drawn, cost = self._samples_for(name, start)
    self.cell.check(drawn, start)
    if name in ("rft2", "rft2_equal"):
      solutions = self._trained_on[self.cell.study.start] + self.cell.correct(
        name, drawn, self._kept(name, drawn)
      )
      return self._by_likelihood(arm, solutions, self.cell.study.rft, start.cost + cost, start)
    return self.choose(arm, self._preference(name, arm, start, drawn, cost))

  def _round(self, name: str, number: int) -> Policy:
    """An on-policy round after the first one."""
    earlier = name if number == 2 else f"{name}*{number - 1}"
    before = self.policy(earlier)
    drawn, cost = self._samples_for(name, before)
    called = f"{name}*{number}"
    if name.startswith("rft2"):
      solutions = self._trained_on[earlier] + self.cell.correct(
        called, drawn, self._kept(name, drawn)
      )
      policy = self._by_likelihood(
        called, solutions, self.cell.study.rft, before.cost + cost, before
      )
    else:
      policy = self.choose(called, self._preference(name, called, before, drawn, cost))
    return policy._replace(notes=before.notes + policy.notes)

  def teacher(self) -> list[Solution]:
    """The teacher's correct solutions."""
    if not self._teacher:
      self._teacher = self.cell.teacher()
    return self._teacher

  def drawn(self, policy: Policy, n: int) -> tuple[list[SampledTrace], Cost]:
    """n traces of every problem, and what they took."""
    key = policy.name, n
    if key not in self._drawn:
      self._drawn[key] = self.cell.sample(policy, n)
    return self._drawn[key]

  def _rft(self, arm: str) -> Policy:
    study, sft = self.cell.study, self.policy("sft")
    samples = study.samples
    if arm in ("rft_many", *PICKED):
      samples = study.samples_many
    if arm == "rft_equal":
      samples = self._equal(sft)
    drawn, cost = self.drawn(sft, samples)
    if arm in PICKED:
      questions = {p.id: p.question for p in self.cell.problems}
      drawn = clean_picks.picks(questions, drawn, study.kept)[PICKED.index(arm)]
    own = self.cell.correct(arm, drawn, self._kept(arm, drawn))
    return self._by_likelihood(arm, self.teacher() + own, study.rft, sft.cost + cost)

  def _sft_long(self) -> Policy:
    sft, rft = self.policy("sft"), self.policy("rft")
    times = (rft.cost.trained - sft.cost.trained) / max(sft.cost.trained, 1)

    def learn(called: str, setting: Setting) -> Policy:
      longer = dataclasses.replace(
        setting, epochs=setting.epochs * times, steps=round(setting.steps * times)
      )
      return self.cell.by_likelihood(
        called, self.teacher(), longer.train(self.cell.experiment.train), None, Cost()
      )

    return self.choose("sft_long", learn)

  def _by_likelihood(
    self,
    arm: str,
    solutions: list[Solution],
    cfg: schema.Train,
    cost: Cost,
    start: Policy | None = None,
  ) -> Policy:
    self._trained_on[arm] = solutions
    return self.choose(
      arm,
      lambda called, setting: self.cell.by_likelihood(
        called, solutions, setting.train(cfg), start, cost
      ),
    )

  def _samples_for(self, name: str, policy: Policy) -> tuple[list[SampledTrace], Cost]:
    """What an arm learns from, sampled from a policy."""
    equal = name == "rft2_equal" or (name in PAIRED and PAIRED[name].equal)
    return self.drawn(policy, self._equal(policy) if equal else self.cell.study.samples)

  def _equal(self, policy: Policy) -> int:
    """Samples a problem that take as many tokens as the study's samples and their step values together."""
    drawn, cost = self.drawn(policy, self.cell.study.samples)
    _, values = preference_data.valued(self.cell, policy, drawn, correct_too=False)
    return math.ceil(self.cell.study.samples * (1 + values.sampled / max(cost.sampled, 1)))

  def _kept(self, arm: str, drawn: Sequence[SampledTrace]) -> int:
    """Most distinct correct traces of a problem: as many of those sampled under every arm."""
    study = self.cell.study
    if arm == "rft_many":
      return study.kept_many
    if arm in PICKED:
      return study.kept
    times = len(drawn) / (study.samples * len(self.cell.problems))
    return round(study.kept * times)

  def _preference(
    self, name: str, called: str, start: Policy, drawn: list[SampledTrace], cost: Cost
  ) -> Learn:
    """Values where the arm needs them, then pairs or trees; training goes on from `start`."""
    cell = self.cell
    cost = start.cost + cost
    objective = cell.experiment.objective
    samples = preference_data.unvalued(cell, drawn)
    paired = PAIRED.get(name)
    if paired is None or paired.weighted or paired.mode not in ("random", "distant"):
      every = paired is None or paired.weighted
      samples, values = preference_data.valued(cell, start, drawn, correct_too=every)
      cost = cost + values
    if paired is None:
      roots = preference_data.merged(cell, called, samples)
    else:
      pairing = dataclasses.replace(
        cell.study.pairs, mode=paired.mode, pit=paired.pit, weighted=paired.weighted
      )
      roots = preference_data.paired(cell, called, samples, pairing)
      if paired.chosen_only:
        roots = [trees.chosen_alone(root) for root in roots]
    loss = "step_dpo" if paired else name
    if paired and paired.chosen_only:
      loss = "filtered_sft"

    def learn(policy: str, setting: Setting) -> Policy:
      preference = objective.preference
      advantage = objective.advantage
      if kind_of(name) == "pairs":
        preference = dataclasses.replace(preference, beta=setting.beta, nll=setting.nll)
      if kind_of(name) == "advantage":
        advantage = dataclasses.replace(advantage, beta=setting.beta)
      wanted = dataclasses.replace(objective, loss=loss, preference=preference, advantage=advantage)  # type: ignore[arg-type]
      cfg = setting.train(cell.study.preference)
      return cell.by_preference(policy, roots, wanted, cfg, start, cost, splittable=paired is None)

    return learn
