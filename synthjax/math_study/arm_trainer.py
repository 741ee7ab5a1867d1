"""The steps by which arms are trained in one cell; `recipes/math_rl.py` has their order.

What arms share (policies, samples, step values) is made once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from synthjax.data import trees
from synthjax.math_study import arms, clean_picks, preference_data, sampling, training
from synthjax.math_study.arms import Arm, CorrectTraces, TeacherTraces, TracePairs, TraceTrees
from synthjax.math_study.cell import Cell, Cost, Solution, TrainedPolicy
from synthjax.math_study.preference_data import ValuedSamples
from synthjax.math_study.sampling import PolicySamples
from synthjax.math_study.settings import ArmSetting

# (name of the policy, settings) -> the trained policy
Learn = Callable[[str, ArmSetting], TrainedPolicy]
# Trains an arm with the settings that are chosen for it.
Choose = Callable[[Arm, Learn], TrainedPolicy]
TrainArm = Callable[["ArmTrainer", Arm], TrainedPolicy]


class Start(NamedTuple):
  """The policy that an arm samples, and its samples."""

  policy: TrainedPolicy
  samples: PolicySamples

  @property
  def cost(self) -> Cost:
    return self.policy.cost + self.samples.cost


class PreferenceData(NamedTuple):
  """What a preference arm is trained on."""

  start: TrainedPolicy  # the reference too
  roots: list[trees.Node]
  cost: Cost  # of all that it stands on


class ArmTrainer:
  """Trains the arms of one cell.

  Args:
    cell: N problems and a seed.
    train_arm: the steps of one arm in order, `recipes.math_rl.train_arm`.
    choose: trains an arm with the settings chosen for it.
  """

  def __init__(self, cell: Cell, train_arm: TrainArm, choose: Choose):
    self.cell, self.train_arm, self.choose = cell, train_arm, choose
    self._policies: dict[str, TrainedPolicy] = {}
    self._teacher: list[Solution] = []
    self._solutions: dict[str, list[Solution]] = {}  # by the name of an arm trained by likelihood
    self._drawn: dict[tuple[str, int], PolicySamples] = {}

  def policy(self, name: str) -> TrainedPolicy:
    """The trained policy of an arm, and of all that it stands on.

    Raises:
      ConfigError: there is no arm of that name. TooWeakError, DataError, TrainingStopped: see
        `sampling` and `training`.
    """
    if name not in self._policies:
      self._policies[name] = self.train_arm(self, arms.find(name))
    return self._policies[name]

  def sample(self, arm: Arm) -> Start:
    """Samples SFT, the study's start policy, or the policy of the arm's round before.

    Arms of the teacher's traces alone start from the base policy, without samples.

    Raises:
      TooWeakError: the start policy is correct too seldom.
    """
    if isinstance(arm.data, TeacherTraces):
      return Start(self.cell.base_policy(), PolicySamples([], Cost()))
    policy = self.policy(self._sampled_arm(arm))
    samples = self._draw(policy, self._samples_per_problem(arm, policy))
    if arm.rounds == 1:
      sampling.check_accuracy(self.cell, samples.traces, policy)
    return Start(policy, samples)

  def sft_or_rft(self, arm: Arm, start: Start) -> TrainedPolicy:
    """Trains on the teacher's traces, for RFT with distinct correct samples beside them.

    Arms without rounds train from the base policy, the others go on from the sampled one.
    """
    study = self.cell.study
    cfg = study.rft
    scale = 1.0
    if isinstance(arm.data, TeacherTraces):
      cfg = self.cell.experiment.train
      scale = self._times_as_long(arm.data.as_long_as)
    solutions = self._solutions_for(arm, start)
    self._solutions[arm.name] = solutions
    going_on_from = start.policy if arm.rounds else None

    def learn(name: str, setting: ArmSetting) -> TrainedPolicy:
      train = setting.longer(scale).train(cfg)
      return training.by_likelihood(self.cell, name, solutions, train, going_on_from, start.cost)

    return self._chosen(arm, learn, start.policy)

  def step_values(self, arm: Arm, start: Start) -> ValuedSamples:
    """Rolls out the prefixes of the samples, where the arm needs to know the values of steps."""
    traces = start.samples.traces
    if not arm.needs_values:
      return preference_data.unvalued(self.cell, traces)
    every = arm.needs_values == "every"
    return preference_data.valued(self.cell, start.policy, traces, every)

  def pairs(self, arm: Arm, start: Start, valued: ValuedSamples) -> PreferenceData:
    """Pairs, cut at the first pit where the arm knows it; or all traces of a problem as a tree."""
    pairing = self.cell.study.pairs
    if isinstance(arm.data, TracePairs):
      pairing = dataclasses.replace(pairing, pit=arm.data.pit)
    roots = preference_data.trees_of(self.cell, arm, arm.name, valued.problems, pairing)
    return PreferenceData(start.policy, roots, start.cost + valued.cost)

  def per_step_dpo(self, arm: Arm, data: PreferenceData) -> TrainedPolicy:
    """Trains on steps of pairs or trees by the arm's loss; in plain DPO all weigh 1."""
    cell = self.cell

    def learn(name: str, setting: ArmSetting) -> TrainedPolicy:
      preference = training.PreferenceTraining(
        roots=data.roots,
        objective=training.objective_of(arm, setting.objective(arm, cell.experiment.objective)),
        train=setting.train(cell.study.preference),
        start=data.start,
        cost=data.cost,
        splittable=isinstance(arm.data, TraceTrees),
      )
      return training.by_preference(cell, name, preference)

    return self._chosen(arm, learn, data.start)

  def _chosen(self, arm: Arm, learn: Learn, before: TrainedPolicy) -> TrainedPolicy:
    policy = self.choose(arm, learn)
    if arm.rounds > 1:
      policy = policy._replace(notes=before.notes + policy.notes)
    return policy

  def _sampled_arm(self, arm: Arm) -> str:
    if arm.rounds == 0:
      return "sft"
    if arm.rounds == 1:
      return self.cell.study.start
    return arm.round_before().name

  def _draw(self, policy: TrainedPolicy, n: int) -> PolicySamples:
    """n traces of every problem."""
    key = policy.name, n
    if key not in self._drawn:
      self._drawn[key] = sampling.sample(self.cell, policy, n)
    return self._drawn[key]

  def _samples_per_problem(self, arm: Arm, policy: TrainedPolicy) -> int:
    study = self.cell.study
    if arm.samples == "some":
      return study.samples
    if arm.samples == "many":
      return study.samples_many
    samples = self._draw(policy, study.samples)
    rollouts = preference_data.valued(self.cell, policy, samples.traces, every=False).cost.sampled
    return math.ceil(study.samples * (1 + rollouts / max(samples.cost.sampled, 1)))

  def _times_as_long(self, other: str) -> float:
    """How many times as many tokens as SFT another arm is trained on; 1 where none is named."""
    if not other:
      return 1.0
    sft, longer = self.policy("sft").cost.trained, self.policy(other).cost.trained
    return (longer - sft) / max(sft, 1)

  def _solutions_for(self, arm: Arm, start: Start) -> list[Solution]:
    if not isinstance(arm.data, CorrectTraces):
      return self._teacher_traces()
    drawn = start.samples.traces
    times = len(drawn) / (self.cell.study.samples * len(self.cell.problems))
    if arm.data.pick:
      questions = {p.id: p.question for p in self.cell.problems}
      picks = clean_picks.picks(questions, drawn, self.cell.study.kept)
      drawn = picks.clean if arm.data.pick == "clean" else picks.spurious
    own = sampling.correct(self.cell, arm.name, drawn, arm.kept(self.cell.study, times))
    if arm.rounds == 0:
      return self._teacher_traces() + own
    # By the arm and not by the policy: one that is being tuned has the name of its trial.
    return self._solutions[self._sampled_arm(arm)] + own

  def _teacher_traces(self) -> list[Solution]:
    if not self._teacher:
      self._teacher = sampling.teacher(self.cell)
    return self._teacher
