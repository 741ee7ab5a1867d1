"""The experiment as frozen dataclasses: every field once, with type, range, default and comment.

`config.py` turns a ConfigDict into these; rooms receive the part that concerns them, nothing else.
`synthjax config --explain` prints what stands here.
"""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.fields import (
  Checked,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Share,
  at_least,
  distinct,
  from_to,
  from_to_below,
  multiple_of,
  not_empty,
  of_form,
)
from synthjax.credit.pairing import Pairing
from synthjax.credit.schedules import Values
from synthjax.credit_phase.diagram import CreditPhase
from synthjax.rollout.requests import Sampling
from synthjax.worlds.shop import World
from synthjax.worlds.star import Star


@dataclasses.dataclass(frozen=True)
class Model(Checked):
  """A Llama-style decoder. `presets.PRESETS` holds named shapes."""

  d_model: PositiveInt = 256  # width of the residual stream
  layers: PositiveInt = 4  # number of blocks
  heads: PositiveInt = 8  # query heads
  kv_heads: PositiveInt = 8  # key and value heads; divides `heads`
  head_dim: Annotated[PositiveInt, multiple_of(2)] = 32  # width of a head (32 beats 16 on CPU)
  mlp_dim: PositiveInt = 1024  # width of the hidden layer of the MLP
  # rows of the embedding; 0: the tokenizer's size rounded up to a multiple of 64
  vocab_size: NonNegativeInt = 0
  # activation (relu is about 5x cheaper than silu on CPU)
  mlp: Literal["swiglu", "relu2", "relu"] = "swiglu"
  rope_theta: PositiveFloat = 10_000.0  # base of the rotary frequencies
  # how rotary frequencies are stretched to longer contexts
  rope_scaling: Literal["none", "linear", "llama3"] = "none"
  # by how much positions are stretched under `rope_scaling`
  rope_factor: Annotated[float, at_least(1)] = 1.0
  # llama3 scaling: below this many turns in the original context all is stretched
  rope_low_freq_factor: PositiveFloat = 1.0
  rope_high_freq_factor: PositiveFloat = 4.0  # llama3 scaling: above this many turns nothing is
  # llama3 scaling: context length of the original training
  rope_original_context: PositiveInt = 8192
  norm_epsilon: PositiveFloat = 1e-5  # of the RMS norms
  qk_norm: bool = False  # RMS norm on queries and keys, per head
  qkv_bias: bool = False  # biases on the query, key and value projections (Qwen2)
  tie_embeddings: bool = False  # the output head is the embedding, transposed
  logit_soft_cap: NonNegativeFloat = 0.0  # cap * tanh(logits / cap); 0: none
  attention_soft_cap: NonNegativeFloat = 0.0  # the same on attention scores (Gemma 2)
  # a token sees this many positions, itself among them; 0: all before it
  window: NonNegativeInt = 0
  # of attention and head; auto says what it chose and why
  kernels: Literal["auto", "xla", "pallas"] = "auto"
  # recomputed in the backward pass: all but matrix products, or all
  remat: Literal["none", "dots", "full"] = "none"
  # compute type; auto: float32 on CPU, bfloat16 elsewhere
  dtype: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclasses.dataclass(frozen=True)
class Tokenizer(Checked):
  """Which tokenizer; `data/tokenizers.py` loads or trains it."""

  # format; hf is a tokenizer.json
  kind: Literal["world", "bytes", "sentencepiece", "hf", "gpt2"] = "world"
  # file or folder of the tokenizer; sentencepiece with an empty path: trained on the training
  # documents
  path: str = ""
  vocab_size: PositiveInt = 2048  # size of a SentencePiece model that is trained here
  eos: str = ""  # end-of-text token of an hf tokenizer.json whose folder does not say it


TASK = Literal[
  "world", "gsm8k", "math", "math500", "svamp", "gsm_hard", "aqua", "problems", "traces", "text"
]
TRACES = Literal["teacher", "clean", "base"]


@dataclasses.dataclass(frozen=True)
class Source(Checked):
  """Where documents come from."""

  # problems: JSONL of {question, answer, solution}, of which test problems need no solution;
  # traces: JSONL of {inputs, targets}; text: JSONL of {id, text}, or plain text with a document a
  # line
  task: TASK = "world"
  # of a mixture's part: file or glob (.gz or not), or tfds:NAME[#SPLIT]; "": the task's own file
  # below data.folder
  path: str = ""
  count: NonNegativeInt = 0  # how many documents, from the first on; 0: all there are (world: 1000)
  traces: TRACES = "teacher"  # world only: with leaps, without, or the base policy's corpus
  rate: PositiveFloat = 1.0  # share of the training rows in a mixture, relative to the other rates


@dataclasses.dataclass(frozen=True)
class Data(Checked):
  """Where problems and traces come from and how they become rows."""

  task: TASK = "world"  # which problems; the test problems are always of this task
  folder: str = ""  # folder of the tasks' files; "": SYNTHJAX_DATA or ../shared/data
  # rows of `task` to train on: file or glob (.gz or not), or tfds:NAME[#SPLIT]; "": the task's own
  # file below data.folder; a mixture's parts have a `path` each instead
  train_path: str = ""
  # rows of `task` to evaluate on, written as train_path
  test_path: str = ""
  # number of training problems; 0: all there are; a mixture's parts have a `count` each instead
  train_problems: NonNegativeInt = 0
  # number of test problems evaluated; 0: all there are (world: 1000)
  test_problems: NonNegativeInt = 0
  traces: TRACES = "teacher"  # world only: with leaps, without, or the base policy's corpus
  # trains on these at their rates instead of on `task`; needs train.steps
  mixture: tuple[Source, ...] = ()
  # what happens to training documents that repeat an evaluation problem, by id, by normalised text
  # or by the rules of verify/decontaminate.py: the run stops, they are left out and counted, or
  # nobody looks
  overlap: Literal["error", "drop", "allow"] = "error"
  # how solutions fall into steps, see credit/steps.py: world: at ` ; `; gsm8k: a line; math: a
  # sentence, or a line, outside LaTeX; task: as the task has it, a line where it has nothing else
  steps: Literal["task", "world", "gsm8k", "math"] = "task"
  tokenizer: Tokenizer = Tokenizer()  # how text becomes tokens
  row_length: Annotated[int, at_least(2)] = 128  # tokens in a training row
  # what happens to a document longer than a row
  too_long: Literal["drop", "truncate", "split", "error"] = "error"
  prefetch: PositiveInt = 4  # batches read ahead
  threads: PositiveInt = 2  # threads that read


Axis = Annotated[int, at_least(1, or_else=-1)]


@dataclasses.dataclass(frozen=True)
class Mesh(Checked):
  """Devices along each axis; -1 (once) takes what is left."""

  replica: Axis = 1  # copies of the parameters: data parallel
  fsdp: Axis = -1  # parameters and optimizer state split over these; data parallel too
  tensor: Axis = 1  # heads, MLP and vocabulary split over these
  context: Axis = 1  # positions of a row split over these


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
  batch_size: PositiveInt = 32  # rows a step, over all devices
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
  # DPO, DPOP, RPO, SimPO, step_dpo: probability that a label is wrong
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


@dataclasses.dataclass(frozen=True)
class Evaluate(Checked):
  """How policies are evaluated."""

  # name in evaluate/protocols.py; "": the test problems of data.task, as the policy was trained
  # to answer them
  protocol: str = ""
  slots: PositiveInt = 128  # responses sampled together
  max_new_tokens: PositiveInt = 64  # an answer longer than this counts as truncated
  samples: PositiveInt = 1  # responses a problem; 1 is greedy unless `temperature` says otherwise
  temperature: Annotated[float, from_to(0, 100)] = 0.0  # of the samples; 0: greedy
  pass_at: tuple[PositiveInt, ...] = ()  # k of pass@k and maj@k, each at most `samples`
  policy: Literal["strict", "lm_eval"] = "strict"  # what counts as equal, see verify/policy.py
  before: bool = True  # also measure the policy before training
  # where the final answer stands, see verify/extract.py; task: as the task has it; gsm8k_order and
  # math_order: the first of the task's usual places that holds one
  answer: Literal[
    "task",
    "hash",
    "answer_is",
    "final_line",
    "boxed",
    "boxes",
    "minerva",
    "stated",
    "last_math",
    "gsm8k_order",
    "math_order",
  ] = "task"


Positives = Annotated[tuple[PositiveFloat, ...], not_empty(), distinct()]


@dataclasses.dataclass(frozen=True)
class Tune(Checked):
  """How the settings of study A's arms are chosen: every combination on development problems.

  The best mean accuracy wins, and of equal ones the first in the order of the grid, which rises.
  Grids are our choice.
  """

  problems: NonNegativeInt = 0  # N of the cell that is tuned on; 0: nothing is tuned
  # of that cell; not one of study.seeds: its training problems are of the study's distribution and
  # not of its cells
  seed: NonNegativeInt = 1000
  dev_problems: PositiveInt = 500  # that every trial answers
  samples: PositiveInt = 2  # answers a problem, at the temperature of study.sampling
  rates: Positives = (3e-5, 1e-4, 3e-4, 1e-3)  # learning rates of arms that learn from pairs
  betas: Positives = (0.03, 0.1, 0.3)  # of these; each without and with the anchor
  epochs: Positives = (2.0, 6.0)  # of these
  # of arms by likelihood from the base policy: no beta and no anchor, but more epochs
  likelihood_rates: Positives = (5e-4, 1e-3, 2e-3, 4e-3)
  likelihood_epochs: Positives = (5.0, 10.0, 20.0, 40.0)  # of these
  # of arms that go on by likelihood from the start policy
  short_rates: Positives = (3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3)
  short_epochs: Positives = (1.0, 2.0, 6.0, 12.0)  # of these


@dataclasses.dataclass(frozen=True)
class StudyServer(Checked):
  """A server of the OpenAI protocol that samples a study's start policy; see math_study/served.py."""

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
  # answers a test problem, at the temperature of `sampling`: marks are their means; greedy answers
  # are given beside
  marked: PositiveInt = 4
  sampling: Sampling = Sampling(max_tokens=64, temperature=0.7)  # of the traces
  # samples traces and rollouts of the start policy, once it is trained and served there
  server: StudyServer = StudyServer()
  samples: PositiveInt = 8  # traces drawn a problem
  kept: PositiveInt = 4  # most distinct right ones a problem in an RFT set
  kept_many: PositiveInt = 8  # the same for rft_many
  samples_many: PositiveInt = 32  # traces drawn a problem for rft_many
  wrong: NonNegativeInt = 8  # most wrong traces a problem that get step values
  # of their steps
  values: Values = Values(sampling=Sampling(max_tokens=64, temperature=0.7), keep=4, block=8)
  pairs: Pairing = Pairing()  # caps and guards; each arm sets its own mode
  least_accuracy: Share = 0.25  # of the samples below which pits are noise: the study stops
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


@dataclasses.dataclass(frozen=True)
class Experiment(Checked):
  """One config file."""

  name: str = "experiment"  # shown in tables and logs
  # the file of recipes/ that `synthjax run` follows
  recipe: Literal["finetune", "preference", "math_rl", "star", "credit_phase"] = "finetune"
  seed: NonNegativeInt = 0  # every random choice derives from it
  world: World = World()  # the embedded world, for data.task = "world"
  data: Data = Data()  # problems, traces, tokenizer, rows
  # the decoder: the name of a preset, whose single fields model_overrides changes, or a group
  model: Model = Model()
  mesh: Mesh = Mesh()  # devices along each axis
  train: Train = Train()  # loss, optimizer, steps, checkpoints
  # pairs and loss of recipe = "preference"; knobs of the losses of "math_rl"
  objective: Objective = Objective()
  study: Study = Study()  # recipe = "math_rl"
  star: StarStudy = StarStudy()  # recipe = "star"
  credit_phase: CreditPhase = CreditPhase()  # recipe = "credit_phase"
  evaluate: Evaluate = Evaluate()  # decoding
