"""With which settings each arm of study A is trained: the grid they are chosen from, and the file that the choice is kept in."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping

from synthjax import files
from synthjax.config import schema
from synthjax.config.fields import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat
from synthjax.errors import ConfigError
from synthjax.records import Record


@dataclasses.dataclass(frozen=True)
class Setting(Record, Checked):
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

  def __str__(self) -> str:
    text = f"rate {self.learning_rate:g}, {self.epochs:g} epochs"
    if self.beta:
      text += f", beta {self.beta:g}, anchor {self.nll:g}"
    return text


def of_config(experiment: schema.Experiment, kind: str) -> Setting:
  """The setting that the config itself states for a kind of arm; see `study_arms.kind_of`."""
  study, pairs = experiment.study, experiment.objective.preference
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


def _of_training(cfg: schema.Train) -> Setting:
  return Setting(learning_rate=cfg.optimizer.learning_rate, epochs=cfg.epochs, steps=cfg.steps)


def grid(tune: schema.Tune, kind: str, anchored: bool = False) -> list[Setting]:
  """All settings that an arm of a kind is tried with.

  Args:
    tune: the values.
    kind: of the arm.
    anchored: with the anchor alone.
  """
  if kind in ("sft", "likelihood"):
    return _combined(tune.likelihood_rates, tune.likelihood_epochs)
  if kind in ("resumed", "positives"):
    return _combined(tune.short_rates, tune.short_epochs)
  anchors = (0.0, 1.0) if kind == "pairs" else (0.0,)
  if anchored:
    anchors = (1.0,)
  found = []
  for beta, nll in itertools.product(tune.betas, anchors):
    for plain in _combined(tune.rates, tune.epochs):
      found.append(dataclasses.replace(plain, beta=beta, nll=nll))
  return found


def _combined(rates, epochs) -> list[Setting]:
  return [Setting(rate, passes) for rate, passes in itertools.product(rates, epochs)]


@dataclasses.dataclass(frozen=True)
class Tuned(Record):
  """The setting chosen for an arm, and how."""

  setting: Setting
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
  found = files.read_json(path)
  if not isinstance(found, dict) or "arms" not in found:
    raise ConfigError(f"config.study.tuned is {str(path)!r}: expected the tuned.json of a study")
  return {arm: Tuned.from_json(each) for arm, each in found["arms"].items()}


def save(path: files.Path, tuned: Mapping[str, Tuned], provenance: dict) -> None:
  """Writes what `load` reads, with where it comes from."""
  arms = {arm: each.to_json() for arm, each in tuned.items()}
  files.write_json(path, {"provenance": provenance, "arms": arms})


def edges(chosen: Setting, tried: list[Setting]) -> tuple[str, ...]:
  """Fields of a chosen setting that end the grid: beyond it may be better ones."""
  found = []
  for name in ("learning_rate", "epochs", "beta"):
    values = sorted({getattr(setting, name) for setting in tried})
    if len(values) > 1 and getattr(chosen, name) in (values[0], values[-1]):
      found.append(name)
  return tuple(found)
