"""The arms of study A as a registry: what each is trained on, by which loss, in how many rounds.

Names follow Setlur et al. 2024 (arXiv 2406.14532). `find` reads a name of `config.study.arms`; how
an arm is trained stands in `recipes/math_rl.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from synthjax.config import schema
from synthjax.config.credit import PairMode, PitChoice
from synthjax.errors import ConfigError

Loss = Literal["likelihood", "step_dpo", "filtered_sft", "awr"]
NeedsValues = Literal["", "incorrect", "every"]  # of which sampled traces
# How many samples of a problem an arm learns from: study.samples, study.samples_many, or as many as
# cost the same as study.samples and the rollouts of their step values together.
SampleBudget = Literal["some", "many", "equal"]
# What an arm is in a comparison: credited arms know which step failed, controls do not.
Role = Literal["", "control", "credited"]
# Arms of a kind are tuned over the same grid: `likelihood` trains from the base policy, `resumed`
# goes on from the start policy, `positives` reads the positive side of pairs or steps alone.
Kind = Literal["sft", "likelihood", "resumed", "positives", "pairs", "advantage"]


@dataclasses.dataclass(frozen=True)
class TeacherTraces:
  """The teacher's correct traces."""

  as_long_as: str = ""  # the arm whose trained tokens set the length of the training


@dataclasses.dataclass(frozen=True)
class CorrectTraces:
  """What the sampled policy was trained on, and distinct correct traces among its samples."""

  pick: Literal["", "clean", "spurious"] = ""  # embedded world only: without leaps, or with them


@dataclasses.dataclass(frozen=True)
class TracePairs:
  """Pairs of a correct and an incorrect side; see credit/pairs.py."""

  mode: PairMode
  pit: PitChoice = "first"
  weighted: bool = False  # every step by its |advantage|
  chosen_only: bool = False
  anchored: bool = False  # never without the NLL anchor on the chosen side


@dataclasses.dataclass(frozen=True)
class TraceTrees:
  """All sampled traces of a problem as one tree, every step with its advantage."""


Data = TeacherTraces | CorrectTraces | TracePairs | TraceTrees


@dataclasses.dataclass(frozen=True)
class Arm:
  """One method under comparison.

  Attributes:
    data: what it is trained on.
    loss: by which it is trained.
    needs_values: of which traces it needs step values.
    rounds: times that it samples the policy it goes on from; 0 trains from the base policy.
    samples: how many it learns from.
    role: in the comparison.
    name: in configs, tables and folders.
    method: the name without its rounds.
  """

  data: Data
  loss: Loss
  needs_values: NeedsValues = ""
  rounds: int = 0
  samples: SampleBudget = "some"
  role: Role = ""
  name: str = ""
  method: str = ""

  @property
  def kind(self) -> Kind:
    """Which settings it has."""
    if isinstance(self.data, TeacherTraces):
      return "sft"
    if self.loss == "likelihood":
      return "resumed" if self.rounds else "likelihood"
    if self.loss == "awr":
      return "advantage"
    return "positives" if self.loss == "filtered_sft" else "pairs"

  @property
  def anchored(self) -> bool:
    """Whether it is never trained without the anchor."""
    return isinstance(self.data, TracePairs) and self.data.anchored

  @property
  def tuned_as(self) -> str:
    """Whose tuned settings it has: rounds those of the first one, sft_long those of sft."""
    return "sft" if self.kind == "sft" else self.method

  @property
  def picks_by_leaps(self) -> bool:
    """Whether its data are known in the embedded world alone."""
    return isinstance(self.data, CorrectTraces) and self.data.pick != ""

  def round_before(self) -> "Arm":
    """The arm with one round less, of 2 and more."""
    return _in_rounds(self.method, self.rounds - 1)

  def kept(self, study: schema.Study, times: float = 1.0) -> int:
    """Most distinct correct traces of a problem: as large a part of those drawn under every arm.

    Args:
      study: the config's.
      times: as many traces as `study.samples` were drawn.
    """
    if self.samples == "many":
      return study.kept if self.picks_by_leaps else study.kept_many
    return round(study.kept * times)


def _from_base(**fields) -> Arm:
  """Likelihood of the teacher's and sampled correct traces, from the base policy."""
  data = CorrectTraces(fields.pop("pick", ""))
  return Arm(data, "likelihood", **fields)


def _on_pairs(mode: PairMode, role: Role, samples: SampleBudget = "some", **fields) -> Arm:
  """Pairs of a policy's samples, by the one loss whose weights are all 1 for whole traces.

  Modes that cut a trace at its pit need values of incorrect traces; weights need all of them.
  """
  data = TracePairs(mode, **fields)
  needs_values: NeedsValues = "" if mode in ("random", "distant") else "incorrect"
  if data.weighted:
    needs_values = "every"
  loss: Loss = "filtered_sft" if data.chosen_only else "step_dpo"
  return Arm(data, loss, needs_values, rounds=1, samples=samples, role=role)


def _named(arms: dict[str, Arm]) -> dict[str, Arm]:
  return {name: dataclasses.replace(arm, name=name, method=name) for name, arm in arms.items()}


ARMS = _named(
  {
    # By likelihood, from the base policy. rft adds distinct correct traces sampled from sft.
    "sft": Arm(TeacherTraces(), "likelihood"),
    "sft_long": Arm(TeacherTraces(as_long_as="rft"), "likelihood"),
    "rft": _from_base(role="control"),
    "rft_many": _from_base(samples="many"),
    "rft_equal": _from_base(samples="equal", role="control"),
    "rft_clean": _from_base(samples="many", pick="clean"),
    "rft_spurious": _from_base(samples="many", pick="spurious"),
    # By likelihood, going on from the start policy.
    "rft2": _from_base(rounds=1, role="control"),
    "rft2_equal": _from_base(rounds=1, samples="equal", role="control"),
    # From pairs of the start policy's samples; that policy is the reference.
    "dpo": _on_pairs("random", "control"),
    "rpo": _on_pairs("random", "control", anchored=True),
    "dpo_distant": _on_pairs("distant", "control"),
    "dpo_equal": _on_pairs("random", "control", "equal"),
    "step_dpo.paper": _on_pairs("paper", "credited"),
    "step_dpo.branch": _on_pairs("branch", "credited"),
    "step_dpo.step": _on_pairs("step", "credited"),
    "step_dpo.weighted": _on_pairs("random", "credited", weighted=True),
    # Controls of the pairs: branch without its negatives, paper cut elsewhere than at the pit.
    "chosen_only": _on_pairs("branch", "control", chosen_only=True),
    "random_step": _on_pairs("paper", "control", pit="random"),
    "last_step": _on_pairs("paper", "control", pit="last"),
    # From all sampled traces, step by step.
    "awr": Arm(TraceTrees(), "awr", "every", rounds=1, role="credited"),
    "filtered_sft": Arm(TraceTrees(), "filtered_sft", "every", rounds=1, role="credited"),
  }
)


def find(name: str) -> Arm:
  """The arm of a name in `config.study.arms`: an entry of ARMS, or NAME*k for k on-policy rounds.

  Each round samples and goes on from the policy of the round before.

  Raises:
    ConfigError: there is none of that name.
  """
  if name in ARMS:
    return ARMS[name]
  method, _, rounds = name.partition("*")
  iterable = method in ARMS and ARMS[method].rounds > 0
  if not iterable or not rounds.isdigit() or int(rounds) < 2:
    raise ConfigError(
      f"config.study.arms has {name!r}; expected one of {', '.join(ARMS)}, or NAME*k (k of 2 and "
      "more) for rounds of rft2 or a preference arm"
    )
  return _in_rounds(method, int(rounds))


def of_role(names: Sequence[str], role: Role) -> list[str]:
  """The names whose arms have a role, in order."""
  return [name for name in names if find(name).role == role]


def _in_rounds(method: str, rounds: int) -> Arm:
  if rounds == 1:
    return ARMS[method]
  return dataclasses.replace(ARMS[method], rounds=rounds, name=f"{method}*{rounds}")
