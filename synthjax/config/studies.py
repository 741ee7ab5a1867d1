"""The settings of study A and of the star-graph study."""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.credit import PairConfig, Sampling, ValueConfig
from synthjax.config.fields import (
  Checked,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Share,
  distinct,
  from_to,
  not_empty,
)
from synthjax.config.training import Train
from synthjax.config.worlds import Star

Positives = Annotated[tuple[PositiveFloat, ...], not_empty(), distinct()]


@dataclasses.dataclass(frozen=True)
class Tune(Checked):
  """How the settings of study A's arms are chosen: every combination on development problems.

  The best mean accuracy wins, and of equal ones the first in the order of the grid, which rises.
  Grids are our choice.
  """

  problems: NonNegativeInt = 0  # N of the cell that is tuned on; 0: nothing is tuned
  # of that cell; not one of study.seeds: its training problems come from the study's distribution
  # but are in none of its cells
  seed: NonNegativeInt = 1000
  dev_problems: PositiveInt = 500  # that every trial answers
  samples: PositiveInt = 2  # answers a problem, at the temperature of study.sampling
  rates: Positives = (3e-5, 1e-4, 3e-4, 1e-3)  # learning rates of arms that learn from pairs
  betas: Positives = (0.03, 0.1, 0.3)  # of these; each without and with the anchor
  epochs: Positives = (2.0, 6.0)  # of these
  # of arms by likelihood from the base policy: no beta and no anchor, but more epochs
  likelihood_rates: Positives = (5e-4, 1e-3, 2e-3, 4e-3)
  likelihood_epochs: Positives = (5.0, 10.0, 20.0, 40.0)  # of these
  # of arms that continue by likelihood from the start policy
  short_rates: Positives = (3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3)
  short_epochs: Positives = (1.0, 2.0, 6.0, 12.0)  # of these


@dataclasses.dataclass(frozen=True)
class StudyServer(Checked):
  """A server of the OpenAI protocol that samples a study's start policy.

  See math_study/served.py.
  """

  url: str = ""  # with the version: http://HOST:PORT/v1; "": all policies are sampled here
  # what the server calls the start policy of a cell; {cell} is the cell's folder, such as
  # n00512_s0, and {policy} is study.start: as `synthjax serve --arm CELL/ARM` calls it
  model: str = "{cell}/{policy}"
  key_variable: str = ""  # environment variable that holds the API key; "": none is asked for
  concurrency: PositiveInt = 64  # requests in flight


@dataclasses.dataclass(frozen=True)
class Study(Checked):
  """Study A, for recipe = "math_rl": what N synthetic problems are worth under each arm.

  Sizes are our choice; see docs/study_a.md.
  """

  # N: every arm is trained at each
  problems: Annotated[tuple[PositiveInt, ...], not_empty()] = (512,)
  # further N at which SFT alone is trained: multiples are read off its curve
  baseline_problems: tuple[PositiveInt, ...] = ()
  # each draws its own problems and trains anew
  seeds: Annotated[tuple[NonNegativeInt, ...], not_empty(), distinct()] = (0, 1, 2)
  # see math_study/arms.py; NAME*k is k on-policy rounds
  arms: Annotated[tuple[str, ...], distinct()] = (
    "sft",
    "rft",
    "rft2",
    "chosen_only",
    "dpo",
    "rpo",
    "step_dpo.paper",
    "step_dpo.branch",
  )
  # world only: N at which everything is run again with a teacher that never leaps, the negative
  # control
  control: tuple[PositiveInt, ...] = ()
  # which problems the arms are evaluated on; choose settings on dev
  split: Literal["test", "dev"] = "test"
  # the policy that preference arms sample from, start from and refer to; sft as in the paper
  start: Literal["sft", "rft"] = "sft"
  tune: Tune = Tune()  # chooses every arm's settings before the study
  # tuned.json of a study that chose them, instead of tuning; "" and no tuning: as the config says
  tuned: str = ""
  # answers a test problem, at the temperature of `sampling`: a problem's accuracy is their mean;
  # greedy answers are reported beside it
  marked: PositiveInt = 4
  sampling: Sampling = Sampling(max_tokens=64, temperature=0.7)  # of the traces
  # samples traces and rollouts of the start policy, once it is trained and served there
  server: StudyServer = StudyServer()
  samples: PositiveInt = 8  # traces drawn a problem
  kept: PositiveInt = 4  # most distinct correct ones a problem in an RFT set
  kept_many: PositiveInt = 8  # the same for rft_many
  samples_many: PositiveInt = 32  # traces drawn a problem for rft_many
  incorrect: NonNegativeInt = 8  # most incorrect traces a problem that get step values
  # of their steps
  values: ValueConfig = ValueConfig(
    sampling=Sampling(max_tokens=64, temperature=0.7), keep=4, block=8
  )
  pairs: PairConfig = PairConfig()  # caps and thresholds; each arm sets its own mode
  least_accuracy: Share = 0.25  # of the samples; below it pits are noise and the study stops
  step_limit: PositiveInt = 32  # most steps of a trace
  # of the arms that are trained by likelihood after sft, which follows config.train
  rft: Train = Train()
  preference: Train = Train()  # of the preference arms


@dataclasses.dataclass(frozen=True)
class Attempt(Checked):
  """One way to train a policy out of the star's shortcut, with exact advantages."""

  name: str = ""  # of its folder and row
  # weighted: step_dpo with |advantage| on every step of whole traces
  arm: Literal["step_dpo", "weighted", "awr", "filtered_sft"] = "awr"
  early: bool = False  # from the early checkpoint of SFT instead of the late one
  temperature: Annotated[float, from_to(0, 100)] = 1.0  # of the samples that it learns from
  rounds: PositiveInt = 1  # on-policy rounds
  d_model: NonNegativeInt = 0  # another width of the model, mlp_dim four times it; 0: the config's


@dataclasses.dataclass(frozen=True)
class StarStudy(Checked):
  """The star-graph study, for recipe = "star". Sizes are our choice; see docs/log.md."""

  # G(d, l, n): SFT on each; values and attempts on the first
  graphs: Annotated[tuple[Star, ...], not_empty()] = (Star(2), Star(3), Star(4), Star(5))
  problems: PositiveInt = 10_000  # training problems of SFT
  early_steps: PositiveInt = 100  # of the early checkpoint; the late one follows config.train
  test_problems: PositiveInt = 500  # on which policies are evaluated
  # problems, a sampled trace each, whose Monte-Carlo values are compared with exact ones
  valued: PositiveInt = 200
  rollouts: PositiveInt = 16  # of every prefix there
  explored: PositiveInt = 2000  # further problems from whose samples the attempts learn
  samples: PositiveInt = 8  # of each
  attempts: tuple[Attempt, ...] = ()  # to train out of the shortcut, in order
