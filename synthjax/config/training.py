"""One training: optimizer, schedule, losses over pairs and single steps."""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.fields import (
  Checked,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Share,
  from_to,
  from_to_below,
  of_form,
)


@dataclasses.dataclass(frozen=True)
class Optimizer(Checked):
  """AdamW with a schedule."""

  learning_rate: PositiveFloat = 1e-3  # at its peak
  # shape of the learning rate over the steps
  schedule: Literal["wsd", "cosine", "linear", "constant"] = "cosine"
  # share of the steps (below 1) or their number (1 and more) of linear warm-up
  warmup: NonNegativeFloat = 0.05
  decay: NonNegativeFloat = 0.2  # wsd: share of the steps, or their number, of the final decay
  final: Share = 0.1  # learning rate at the end, as a share of the peak
  beta1: Annotated[float, from_to_below(0, 1)] = 0.9  # decay of the first moment
  beta2: Annotated[float, from_to_below(0, 1)] = 0.95  # decay of the second moment
  epsilon: NonNegativeFloat = 1e-8  # added to the root of the second moment
  weight_decay: NonNegativeFloat = 0.1  # on matrices only: norms and biases are left alone
  clip: NonNegativeFloat = 1.0  # largest global norm of the gradient; 0: none


@dataclasses.dataclass(frozen=True)
class Train(Checked):
  """One training."""

  init: str = ""  # folder of a checkpoint to start from; "": from scratch
  # folder of checkpoints of a training that this one continues whole (parameters, optimizer state,
  # step, data position) under its own schedule; "": none
  continue_from: str = ""
  continue_step: NonNegativeInt = 0  # which of its steps; 0: the newest
  loss: Literal["cross_entropy"] = "cross_entropy"  # name of the loss, see losses/
  z_loss: NonNegativeFloat = 0.0  # weight of the squared log-normaliser
  batch_size: PositiveInt = 32  # sequences a step, over all devices
  accumulate: PositiveInt = 1  # micro-batches a step; divides batch_size
  steps: NonNegativeInt = 0  # number of steps; 0: as many as `epochs` takes
  epochs: NonNegativeFloat = 1.0  # passes over the documents when `steps` is 0
  optimizer: Optimizer = Optimizer()  # AdamW and its schedule
  log_every: PositiveInt = 20  # steps between two lines of metrics
  checkpoint_every: PositiveInt = 200  # steps between two checkpoints
  keep: PositiveInt = 2  # newest checkpoints kept, besides the best
  # steps between two measurements of held-out loss; 0: only at the end
  eval_every: NonNegativeInt = 0
  # steps to trace for xprof, as "first:last"
  profile: Annotated[str, of_form(r"([0-9]+:[0-9]+)?", "FIRST:LAST, for example 10:12")] = ""


@dataclasses.dataclass(frozen=True)
class Preference(Checked):
  """Knobs of the losses over pairs; a loss reads those that name it, see losses/."""

  # DPO, IPO (the paper's tau), DPOP, RPO, KTO, step_dpo: strength of the pull to the reference
  beta: PositiveFloat = 0.1
  # DPO, DPOP, RPO, SimPO, step_dpo: probability that a label is incorrect
  label_smoothing: Annotated[float, from_to_below(0, 0.5)] = 0.0
  # step_dpo: weight of the anchor, the NLL a token of all steps of the chosen sides
  nll: NonNegativeFloat = 0.0
  # IPO: log-ratios are means over tokens (TRL), not sums (the paper)
  ipo_length_normalised: bool = True
  # DPOP: weight of the chosen log-prob's fall below the reference (lambda of the paper is of this
  # order)
  dpop: NonNegativeFloat = 5.0
  rpo_alpha: PositiveFloat = 1.0  # RPO: weight of the chosen response's NLL (alpha)
  # RPO, ORPO: the NLL is a mean over responses of means over tokens, or one over all chosen tokens
  # of the batch (TRL)
  nll_mean: Literal["responses", "tokens"] = "responses"
  # KTO: what estimates the reference point; mismatched (paper, TRL) lays out two more responses a
  # pair, matched takes the pairs' own, zero takes none
  kto_reference: Literal["mismatched", "matched", "zero"] = "mismatched"
  kto_desirable: NonNegativeFloat = 1.0  # KTO: lambda of chosen responses
  kto_undesirable: NonNegativeFloat = 1.0  # KTO: lambda of rejected ones
  simpo_beta: PositiveFloat = 2.0  # SimPO: beta, of log-probs a token; 2 to 10 in the paper
  simpo_margin: NonNegativeFloat = 1.0  # SimPO: gamma
  orpo_lambda: PositiveFloat = 0.1  # ORPO: weight of the odds ratio (lambda)
  orpo_prompt: bool = False  # ORPO: the NLL counts the tokens of the prompt as well (TRL)

  def __post_init__(self):
    super().__post_init__()
    trains = self.kto_desirable > 0 or self.kto_undesirable > 0
    self.require(trains, "kto_undesirable", "above 0 where kto_desirable is 0")


@dataclasses.dataclass(frozen=True)
class Advantage(Checked):
  """Knobs of advantage-weighted RL and filtering."""

  beta: PositiveFloat = 1.0  # temperature of exp(A / beta)
  clip: PositiveFloat = 20.0  # largest weight
  normalise: bool = False  # divide the weights by their mean over the batch
  # filtered cross-entropy keeps steps with an advantage above it
  threshold: Annotated[float, from_to(-1, 1)] = 0.0


@dataclasses.dataclass(frozen=True)
class Objective(Checked):
  """What a preference training minimises, for recipe = "preference"."""

  pairs: str = ""  # JSONL of records.Pair
  # see losses/
  loss: Literal[
    "step_dpo", "awr", "filtered_sft", "dpo", "ipo", "dpop", "rpo", "kto", "simpo", "orpo"
  ] = "step_dpo"
  preference: Preference = Preference()  # knobs of the losses over pairs
  advantage: Advantage = Advantage()  # knobs of the losses over single steps
  # folder of the reference's log-prob sums, to share between runs; "": WORKDIR/reference
  reference: str = ""
