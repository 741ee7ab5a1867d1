"""Settings of study A's arms: the config's, the grid of tuning, and the file of the chosen ones."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

from synthjax import files
from synthjax.config import schema
from synthjax.config.fields import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat
from synthjax.errors import ConfigError
from synthjax.math_study.arms import Arm
from synthjax.records import Record


@dataclasses.dataclass(frozen=True)
class ArmSetting(Record, Checked):
  """What is tuned of an arm."""

  learning_rate: PositiveFloat  # peak
  epochs: NonNegativeFloat
  steps: NonNegativeInt = 0  # 0: as many as `epochs` takes; tuning leaves it at 0
  beta: NonNegativeFloat = 0.0  # of the margin; 0 where the arm has none
  nll: NonNegativeFloat = 0.0  # weight of the anchor on the chosen side

  def train(self, cfg: schema.Train) -> schema.Train:
    """A training with this rate and this long."""
    optimizer = dataclasses.replace(cfg.optimizer, learning_rate=self.learning_rate)
    return dataclasses.replace(cfg, optimizer=optimizer, epochs=self.epochs, steps=self.steps)

  def objective(self, arm: Arm, objective: schema.Objective) -> schema.Objective:
    """The config's objective with the knobs that are tuned of it for an arm."""
    preference, advantage = objective.preference, objective.advantage
    if arm.kind == "pairs":
      preference = dataclasses.replace(preference, beta=self.beta, nll=self.nll)
    if arm.kind == "advantage":
      advantage = dataclasses.replace(advantage, beta=self.beta)
    return dataclasses.replace(objective, preference=preference, advantage=advantage)

  def longer(self, times: float) -> "ArmSetting":
    """The same for so many times the length."""
    epochs, steps = self.epochs * times, round(self.steps * times)
    return dataclasses.replace(self, epochs=epochs, steps=steps)

  def __str__(self) -> str:
    text = f"rate {self.learning_rate:g}, {self.epochs:g} epochs"
    if self.beta:
      text += f", beta {self.beta:g}, anchor {self.nll:g}"
    return text


def of_config(experiment: schema.Experiment, arm: Arm) -> ArmSetting:
  """The setting that the config itself states for an arm."""
  study, pairs, kind = experiment.study, experiment.objective.preference, arm.kind
  if kind == "sft":
    return _of_training(experiment.train)
  if kind in ("likelihood", "resumed"):
    return _of_training(study.rft)
  plain = _of_training(study.preference)
  if kind == "pairs":
    return dataclasses.replace(plain, beta=pairs.beta, nll=pairs.nll)
  if kind == "advantage":
    return dataclasses.replace(plain, beta=experiment.objective.advantage.beta)
  return plain


def _of_training(cfg: schema.Train) -> ArmSetting:
  return ArmSetting(learning_rate=cfg.optimizer.learning_rate, epochs=cfg.epochs, steps=cfg.steps)


def grid(tune: schema.Tune, arm: Arm) -> list[ArmSetting]:
  """All settings that an arm is tried with: the same for arms of a kind."""
  if arm.kind in ("sft", "likelihood"):
    return _combined(tune.likelihood_rates, tune.likelihood_epochs)
  if arm.kind in ("resumed", "positives"):
    return _combined(tune.short_rates, tune.short_epochs)
  anchors: tuple[float, ...] = (0.0,)
  if arm.kind == "pairs":
    anchors = (0.0, 1.0)
  if arm.anchored:
    anchors = (1.0,)
  settings = []
  for beta, nll in itertools.product(tune.betas, anchors):
    for plain in _combined(tune.rates, tune.epochs):
      settings.append(dataclasses.replace(plain, beta=beta, nll=nll))
  return settings


def _combined(rates: Sequence[float], epochs: Sequence[float]) -> list[ArmSetting]:
  return [ArmSetting(rate, passes) for rate, passes in itertools.product(rates, epochs)]


@dataclasses.dataclass(frozen=True)
class Tuned(Record):
  """The setting chosen for an arm, and how."""

  setting: ArmSetting
  accuracy: float  # on development problems
  trials: int
  at_edge: tuple[str, ...] = ()  # fields whose chosen value is the smallest or largest of the grid
  flops: float = 0.0  # of all trials


def load(path: files.Path) -> dict[str, Tuned]:
  """Settings by arm from a file that a tuning run wrote.

  Raises:
    ConfigError: there is no such file, or it is not one of these.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(
      f"config.study.tuned is {str(path)!r}: no such file; give the tuned.json that a study with "
      "config.study.tune.problems wrote into its work folder"
    )
  content = files.read_json(path)
  if not isinstance(content, dict) or "arms" not in content:
    raise ConfigError(f"config.study.tuned is {str(path)!r}: expected the tuned.json of a study")
  return {name: Tuned.from_json(row) for name, row in content["arms"].items()}


def save(path: files.Path, tuned: Mapping[str, Tuned], provenance: dict) -> None:
  """Writes what `load` reads, with where it comes from."""
  arms = {name: choice.to_json() for name, choice in tuned.items()}
  files.write_json(path, {"provenance": provenance, "arms": arms})


def edges(chosen: ArmSetting, tried: Sequence[ArmSetting]) -> tuple[str, ...]:
  """Fields of a chosen setting that end the grid: beyond it may be better ones."""
  at_edge = []
  for name in ("learning_rate", "epochs", "beta"):
    values = sorted({getattr(setting, name) for setting in tried})
    if len(values) > 1 and getattr(chosen, name) in (values[0], values[-1]):
      at_edge.append(name)
  return tuple(at_edge)
