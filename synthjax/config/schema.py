"""The experiment as frozen dataclasses: every field once, with type, range, default and comment.

`config.py` turns a ConfigDict into these; rooms receive the part that concerns them, nothing else.
`synthjax config --explain` prints what stands here.
"""

import dataclasses
from typing import Annotated, Literal

from synthjax.config.credit import PairConfig, PitThresholds, Sampling, ValueConfig
from synthjax.config.credit_phase import CreditPhase
from synthjax.config.fields import (
  Checked,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  at_least,
  from_to,
  multiple_of,
)
from synthjax.config.studies import Attempt, StarStudy, Study, StudyServer, Tune
from synthjax.config.training import Advantage, Objective, Optimizer, Preference, Train
from synthjax.config.worlds import Star, World

__all__ = [  # all that an experiment holds, wherever in config/ it is written
  "Advantage",
  "Attempt",
  "CreditPhase",
  "Data",
  "Evaluate",
  "Experiment",
  "Mesh",
  "Model",
  "Objective",
  "Optimizer",
  "PairConfig",
  "PitThresholds",
  "Preference",
  "Sampling",
  "Source",
  "Star",
  "StarStudy",
  "Study",
  "StudyServer",
  "Tokenizer",
  "Train",
  "Tune",
  "ValueConfig",
  "World",
]


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
  rate: PositiveFloat = 1.0  # share in a mixture, relative to the other rates


@dataclasses.dataclass(frozen=True)
class Data(Checked):
  """Where problems and traces come from and how they become packed sequences."""

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
  # or by the rules of verify/decontaminate.py: error stops the run, drop leaves them out and counts
  # them, allow does not look
  overlap: Literal["error", "drop", "allow"] = "error"
  # how solutions fall into steps, see credit/steps.py: world: at ` ; `; gsm8k: a line; math: a
  # sentence, or a line, outside LaTeX; task: as the task has it, a line where it has nothing else
  steps: Literal["task", "world", "gsm8k", "math"] = "task"
  tokenizer: Tokenizer = Tokenizer()  # how text becomes tokens
  seq_len: Annotated[int, at_least(2)] = 128  # tokens in a packed sequence
  # what happens to a document longer than that
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
  context: Axis = 1  # positions of a sequence split over these


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


@dataclasses.dataclass(frozen=True)
class Experiment(Checked):
  """One config file."""

  name: str = "experiment"  # shown in tables and logs
  # the file of recipes/ that `synthjax run` follows
  recipe: Literal["finetune", "preference", "math_rl", "star", "credit_phase"] = "finetune"
  seed: NonNegativeInt = 0  # every random choice derives from it
  world: World = World()  # the embedded world, for data.task = "world"
  data: Data = Data()  # problems, traces, tokenizer, packing
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
