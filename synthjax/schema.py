"""The experiment as frozen dataclasses: every field once, with its default and one comment.

`config.py` turns a ConfigDict into these; rooms receive the part that concerns them and nothing else.
"""

import dataclasses
from typing import Literal

from synthjax.generate.worlds.shop import World
from synthjax.generate.worlds.star import Star
from synthjax.rollout.pairing import Pairing
from synthjax.rollout.requests import Sampling
from synthjax.rollout.schedules import Values


@dataclasses.dataclass(frozen=True)
class Model:
  """A Llama-style decoder. `presets.PRESETS` holds named shapes."""

  d_model: int = 256  # width of the residual stream
  layers: int = 4  # number of blocks
  heads: int = 8  # query heads
  kv_heads: int = 8  # key and value heads; divides `heads`
  head_dim: int = 32  # width of a head (32 beats 16 on CPU)
  mlp_dim: int = 1024  # width of the hidden layer of the MLP
  vocab_size: int = 0  # rows of the embedding; 0: the tokenizer's size rounded up to a multiple of 64
  mlp: Literal["swiglu", "relu2", "relu"] = "swiglu"  # activation (relu is about 5x cheaper than silu on CPU)
  rope_theta: float = 10_000.0  # base of the rotary frequencies
  rope_scaling: Literal["none", "linear", "llama3"] = "none"  # how rotary frequencies are stretched to longer contexts
  rope_factor: float = 1.0  # by how much positions are stretched under `rope_scaling`
  rope_low_freq_factor: float = 1.0  # llama3 scaling: below this many turns in the original context all is stretched
  rope_high_freq_factor: float = 4.0  # llama3 scaling: above this many turns nothing is
  rope_original_context: int = 8192  # llama3 scaling: context length of the original training
  norm_epsilon: float = 1e-5  # of the RMS norms
  qk_norm: bool = False  # RMS norm on queries and keys, per head
  qkv_bias: bool = False  # biases on the query, key and value projections (Qwen2)
  tie_embeddings: bool = False  # the output head is the embedding, transposed
  logit_soft_cap: float = 0.0  # cap * tanh(logits / cap); 0: none
  attention_soft_cap: float = 0.0  # the same on attention scores (Gemma 2)
  window: int = 0  # a token sees this many positions, itself among them; 0: all before it
  kernels: Literal["auto", "xla", "pallas"] = "auto"  # of attention and head; auto says what it chose and why
  remat: Literal["none", "dots", "full"] = "none"  # recomputed in the backward pass: all but matrix products, or all
  dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute type; auto: float32 on CPU, bfloat16 elsewhere


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Which tokenizer; `data/tokenizers.py` loads or trains it."""

  kind: Literal["world", "bytes", "sentencepiece", "hf", "gpt2"] = "world"  # format; hf is a tokenizer.json
  path: str = ""  # file or folder of the tokenizer; sentencepiece with an empty path: trained on the training documents
  vocab_size: int = 2048  # size of a SentencePiece model that is trained here
  eos: str = ""  # end-of-text token of an hf tokenizer.json whose folder does not say it


TASK = Literal["world", "gsm8k", "math", "math500", "svamp", "gsm_hard", "aqua", "traces", "text"]
TRACES = Literal["teacher", "clean", "base"]


@dataclasses.dataclass(frozen=True)
class Source:
  """Where documents come from."""

  task: TASK = "world"  # traces: JSONL of {inputs, targets}; text: JSONL of {id, text}, or plain text with a document a line
  path: str = ""  # file or glob (.gz or not), or tfds:NAME[#SPLIT]; "": the task's file below data.folder
  count: int = 0  # how many documents, from the first on; 0: all there are (world: 1000)
  traces: TRACES = "teacher"  # world only: with leaps, without, or the base policy's corpus
  rate: float = 1.0  # share of the training rows in a mixture, relative to the other rates


@dataclasses.dataclass(frozen=True)
class Data:
  """Where problems and traces come from and how they become rows."""

  task: TASK = "world"  # which problems; the test problems are always of this task
  folder: str = ""  # folder of the tasks' files; "": SYNTHJAX_DATA or ../shared/data
  train_path: str = ""  # as Source.path
  test_path: str = ""  # as Source.path
  train_problems: int = 0  # number of training problems; 0: all there are
  test_problems: int = 0  # number of test problems evaluated; 0: all there are (world: 1000)
  traces: TRACES = "teacher"  # world only: with leaps, without, or the base policy's corpus
  mixture: tuple[Source, ...] = ()  # trains on these at their rates instead of on `task`; needs train.steps
  tokenizer: Tokenizer = Tokenizer()  # how text becomes tokens
  row_length: int = 128  # tokens in a training row
  too_long: Literal["drop", "truncate", "split", "error"] = "error"  # what happens to a document longer than a row
  prefetch: int = 4  # batches read ahead
  threads: int = 2  # threads that read


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; -1 (once) takes what is left."""

  replica: int = 1  # copies of the parameters: data parallel
  fsdp: int = -1  # parameters and optimizer state split over these; data parallel too
  tensor: int = 1  # heads, MLP and vocabulary split over these
  context: int = 1  # positions of a row split over these


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW with a schedule."""

  learning_rate: float = 1e-3  # at its peak
  schedule: Literal["wsd", "cosine", "linear", "constant"] = "cosine"  # shape of the learning rate over the steps
  warmup: float = 0.05  # share of the steps (below 1) or their number (1 and more) of linear warm-up
  decay: float = 0.2  # wsd: share of the steps, or their number, of the final decay
  final: float = 0.1  # learning rate at the end, as a share of the peak
  beta1: float = 0.9  # decay of the first moment
  beta2: float = 0.95  # decay of the second moment
  epsilon: float = 1e-8  # added to the root of the second moment
  weight_decay: float = 0.1  # on matrices only: norms and biases are left alone
  clip: float = 1.0  # largest global norm of the gradient; 0: none


@dataclasses.dataclass(frozen=True)
class Train:
  """One training."""

  init: str = ""  # folder of a checkpoint to start from; "": from scratch
  loss: str = "cross_entropy"  # name of the loss, see losses/
  z_loss: float = 0.0  # weight of the squared log-normaliser
  batch_size: int = 32  # rows a step, over all devices
  accumulate: int = 1  # micro-batches a step; divides batch_size
  steps: int = 0  # number of steps; 0: as many as `epochs` takes
  epochs: float = 1.0  # passes over the documents when `steps` is 0
  optimizer: Optimizer = Optimizer()  # AdamW and its schedule
  log_every: int = 20  # steps between two lines of metrics
  checkpoint_every: int = 200  # steps between two checkpoints
  keep: int = 2  # newest checkpoints kept, besides the best
  eval_every: int = 0  # steps between two measurements of held-out loss; 0: only at the end
  profile: str = ""  # steps to trace for xprof, as "first:last"


@dataclasses.dataclass(frozen=True)
class Preference:
  """Knobs of the preference losses; each loss reads what its docstring names."""

  beta: float = 0.1  # strength of the pull towards the reference
  label_smoothing: float = 0.0  # DPO: probability that a label is wrong
  nll: float = 0.0  # weight of the chosen response's NLL a token (RPO, and the anchor of the per-step losses)
  dpop: float = 5.0  # DPOP: weight of the chosen log-prob's fall below the reference (lambda of the paper is of this order)
  simpo_margin: float = 0.5  # SimPO: gamma
  kto_desirable: float = 1.0  # KTO: lambda of chosen responses
  kto_undesirable: float = 1.0  # KTO: lambda of rejected ones


@dataclasses.dataclass(frozen=True)
class Advantage:
  """Knobs of advantage-weighted RL and filtering."""

  beta: float = 1.0  # temperature of exp(A / beta)
  clip: float = 20.0  # largest weight
  normalise: bool = False  # divide the weights by their mean over the batch
  threshold: float = 0.0  # filtered cross-entropy keeps steps with an advantage above it


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a preference training minimises, for recipe = "preference"."""

  pairs: str = ""  # JSONL of records.Pair
  loss: Literal["step_dpo", "awr", "filtered_sft", "dpo", "ipo", "dpop", "rpo", "kto", "simpo", "orpo"] = "step_dpo"  # see losses/
  preference: Preference = Preference()  # knobs of the losses over pairs
  advantage: Advantage = Advantage()  # knobs of the losses over single steps
  reference: str = ""  # folder of the reference's log-prob sums, to share between runs; "": WORKDIR/reference


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """How policies are evaluated."""

  protocol: str = ""  # name in evaluate/protocols.py; "": the test problems of data.task, as the policy was trained to answer them
  slots: int = 128  # responses sampled together
  max_new_tokens: int = 64  # an answer longer than this counts as truncated
  samples: int = 1  # responses a problem; 1 is greedy unless `temperature` says otherwise
  temperature: float = 0.0  # of the samples; 0: greedy
  pass_at: tuple[int, ...] = ()  # k of pass@k and maj@k, each at most `samples`
  policy: Literal["strict", "lm_eval"] = "strict"  # what counts as equal, see verify/policy.py
  before: bool = True  # also measure the policy before training
  answer: Literal["task", "hash", "answer_is", "final_line", "boxed"] = "task"  # where the final answer stands; task: as the task has it


@dataclasses.dataclass(frozen=True)
class Study:
  """Study A, for recipe = "math_rl": what N synthetic problems are worth under each arm. Sizes are our choice; see docs/study_a.md."""

  problems: tuple[int, ...] = (512,)  # N: every arm is trained at each
  baseline_problems: tuple[int, ...] = ()  # further N at which SFT alone is trained: multiples are read off its curve
  seeds: tuple[int, ...] = (0, 1, 2)  # each draws its own problems and trains anew
  arms: tuple[str, ...] = ("sft", "rft", "rft2", "dpo", "step_dpo.paper")  # see recipes/math_rl.py; NAME*k is k on-policy rounds
  control: tuple[int, ...] = ()  # world only: N at which everything is run again with a teacher that never leaps, the negative control
  split: Literal["test", "dev"] = "test"  # which problems the arms are evaluated on; choose settings on dev
  start: Literal["sft", "rft"] = "rft"  # the policy that preference arms sample from, start from and refer to
  sampling: Sampling = Sampling(max_tokens=64, temperature=0.7)  # of the traces
  samples: int = 8  # traces drawn a problem
  kept: int = 4  # most distinct right ones a problem in an RFT set
  kept_many: int = 8  # the same for rft_many
  samples_many: int = 32  # traces drawn a problem for rft_many
  wrong: int = 8  # most wrong traces a problem that get step values
  values: Values = Values(sampling=Sampling(max_tokens=64, temperature=0.7), keep=4, block=8)  # of their steps
  pairs: Pairing = Pairing()  # caps and guards; each arm sets its own mode
  least_accuracy: float = 0.25  # of the samples below which pits are noise: the study stops
  step_limit: int = 32  # most steps of a trace
  rft: Train = Train()  # of the arms that are trained by likelihood after sft, which follows config.train
  preference: Train = Train()  # of the preference arms


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One way to train a policy out of the star's shortcut, with exact advantages."""

  name: str = ""  # of its folder and row
  arm: Literal["step_dpo", "weighted", "awr", "filtered_sft"] = "awr"  # weighted: step_dpo with |advantage| on every step of whole traces
  early: bool = False  # from the early checkpoint of SFT instead of the late one
  temperature: float = 1.0  # of the samples that it learns from
  rounds: int = 1  # on-policy rounds
  d_model: int = 0  # another width of the model, mlp_dim four times it; 0: the config's


@dataclasses.dataclass(frozen=True)
class StarStudy:
  """The star-graph study, for recipe = "star". Sizes are our choice; see docs/log.md."""

  graphs: tuple[Star, ...] = (Star(2), Star(3), Star(4), Star(5))  # G(d, l, n): SFT on each; values and attempts on the first
  problems: int = 10_000  # training problems of SFT
  early_steps: int = 100  # of the early checkpoint; the late one follows config.train
  test_problems: int = 500  # on which policies are evaluated
  valued: int = 200  # problems, a sampled trace each, whose Monte-Carlo values are compared with exact ones
  rollouts: int = 16  # of every prefix there
  explored: int = 2000  # further problems from whose samples the attempts learn
  samples: int = 8  # of each
  attempts: tuple[Attempt, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One config file."""

  name: str = "experiment"  # shown in tables and logs
  recipe: Literal["finetune", "preference", "math_rl", "star"] = "finetune"  # the file of recipes/ that `synthjax run` follows
  seed: int = 0  # every random choice derives from it
  world: World = World()  # the embedded world, for data.task = "world"
  data: Data = Data()  # problems, traces, tokenizer, rows
  model: Model = Model()  # the decoder; a config gives a preset's name and `model_overrides`
  mesh: Mesh = Mesh()  # devices along each axis
  train: Train = Train()  # loss, optimizer, steps, checkpoints
  objective: Objective = Objective()  # pairs and loss of recipe = "preference"; knobs of the losses of "math_rl"
  study: Study = Study()  # recipe = "math_rl"
  star: StarStudy = StarStudy()  # recipe = "star"
  evaluate: Evaluate = Evaluate()  # decoding
