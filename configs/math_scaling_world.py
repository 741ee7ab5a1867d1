"""Study A on the embedded world: what N synthetic problems are worth, tuned alike and controlled.

Command:   python -m synthjax run --config configs/math_scaling_world.py --workdir runs/scaling
Hardware:  2 CPU cores: two processes, each with its own study.seeds and one WORKDIR, then one run
           with all of them; see docs/log.md for the time.
Expected:  base policy 59.6 ± 1.5 %; at N = 128 and 256 sft 62.9 and 68.9 %, rft 64.1 and 74.0 %,
           dpo 68.2 and 77.1 %, step_dpo.branch 68.6 and 77.1 % and 1.9 (1.4 to 4.1) and 3.8 (2.4 to
           7.3) times SFT's problems: not shown to be more than its controls; SFT's error consistent
           with a power law from 128 to 2,048 (docs/study_a.md).
Source:    Setlur et al. 2024 (arXiv 2406.14532); the world is ours, sizes and grids are our choice.

The world (worlds/shop.py) is chosen because it has what maths problems have, and not by
what arms make of it:
- solutions are chains of steps, and a step needs a fact (which way a verb moves the total) out of
  many with Zipf frequencies, so that the error of learning from N problems has a long tail;
- the base policy computes single steps and knows the few most frequent facts;
- the teacher is good and not perfect: it misreads 30 % of the events, and only its final answer is
  verified;
- the answer is coarse (full boxes of ten), so that an incorrect step survives now and then, as
  flawed solutions with a correct answer do.
Variants:  `leaps` is the world of the earlier study, whose teacher skips steps; `chains` has eight
           events; `smoke` takes a minute.
`luck` is the point of the phase diagram (docs/study_a.md) at which the theory predicts most of
credit for equal traces: luck that resolves at once, in many contexts. Half of six events come
before a recount, so that half of the wrong steps do no harm, which the problem says; steps need a
thousand facts whose frequencies fall more slowly (exponent 1.2). Its grid of settings is smaller,
for all arms alike: 6 settings for each, 3 where likelihood goes on from SFT. Values are estimated
where a search looks for the pit (`sequential`), as the chains are long; temperature is 1, as in
the theory: at 0.7 SFT is so sure of its training problems that it answers 77 of 256 both correctly
and incorrectly.
"""

import dataclasses

import ml_collections

from synthjax import shipped
from synthjax.worlds import shop

VARIANTS = ("smoke", "leaps", "chains", "luck")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The sweep, or one of its variants."""
  rare = {"checkpoint_every": 10_000, "log_every": 1000}
  config = ml_collections.ConfigDict(
    {
      "name": "math_scaling_world",
      "recipe": "math_rl",
      "model": "world_160k",
      "world": dataclasses.asdict(shop.FACTS),
      "data": {"task": "world", "test_problems": 1000},
      "train": {"batch_size": 8, "init": str(shipped.folder("facts_policy")), **rare},
      "study": {
        "problems": (128, 256),
        "baseline_problems": (512, 1024, 2048),
        "seeds": tuple(range(8)),
        "arms": (
          "sft",
          "rft",
          "rft_equal",
          "rft2",
          "rft2_equal",
          "chosen_only",
          "dpo",
          "rpo",
          "dpo_equal",
          "random_step",
          "step_dpo.paper",
          "step_dpo.branch",
        ),
        "marked": 2,
        "tune": {"problems": 256},
        "least_accuracy": 0.15,  # our policies are weaker than the paper's
        "rft": {"batch_size": 8, **rare},
        "preference": {"batch_size": 16, "optimizer": {"weight_decay": 0.0}, **rare},
      },
      "evaluate": {"max_new_tokens": 64},
    }
  )
  if variant:
    {"leaps": _leaps, "chains": _chains, "luck": _luck, "smoke": _smoke}[variant](config)
  return config


def _leaps(config: ml_collections.ConfigDict) -> None:
  """The earlier world, whose teacher skips steps, and its base policy."""
  config.world = ml_collections.ConfigDict({})
  config.train.init = str(shipped.folder("base_policy"))
  config.study.problems = (512,)
  config.study.tune.problems = 512


def _chains(config: ml_collections.ConfigDict) -> None:
  """Longer problems."""
  config.world.min_events = 8
  config.world.max_events = 8
  config.study.problems = (256,)
  config.study.baseline_problems = (512,)
  config.study.seeds = (0, 1, 2)
  config.study.arms = (
    "sft",
    "rft",
    "chosen_only",
    "dpo",
    "step_dpo.branch",
  )
  # Smaller than the main study's, for all arms alike.
  config.study.tune = {
    "problems": 256,
    "dev_problems": 300,
    "betas": (0.1, 0.3),
    "epochs": (6.0,),
    "likelihood_rates": (1e-3, 2e-3, 4e-3),
    "likelihood_epochs": (10.0, 20.0),
    "short_rates": (3e-4, 1e-3, 2e-3),
    "short_epochs": (2.0, 6.0),
  }
  # Traces and rollouts at the temperatures of the run in docs/log.md.
  config.study.sampling = {"max_tokens": 96, "temperature": 1.0}
  config.study.values = {"keep": 1, "block": 2, "sampling": {"max_tokens": 96}}
  config.data.seq_len = 192
  config.evaluate.max_new_tokens = 96


def _luck(config: ml_collections.ConfigDict) -> None:
  """The world with recounts, which half of the wrong steps survive."""
  config.world = ml_collections.ConfigDict(dataclasses.asdict(shop.LUCK))
  config.train.init = str(shipped.folder("luck_policy"))
  config.data.seq_len = 150
  config.data.test_problems = 600
  config.study.problems = (256,)
  config.study.baseline_problems = (512,)
  config.study.seeds = (0, 1, 2)
  config.study.values = {
    "schedule": "sequential",
    "block": 4,
    "keep": 4,
    "sampling": {"max_tokens": 64, "temperature": 1.0},
  }
  config.study.sampling = {"max_tokens": 64, "temperature": 1.0}
  config.study.arms = (
    "sft",
    "rft",
    "rft2_equal",
    "chosen_only",
    "dpo",
    "dpo_equal",
    "random_step",
    "step_dpo.branch",
    "step_dpo.step",
  )
  config.study.tune = {
    "problems": 256,
    "dev_problems": 300,
    "rates": (3e-5, 1e-4, 3e-4),
    "betas": (0.1,),
    "epochs": (4.0,),
    "likelihood_rates": (1e-3, 2e-3, 4e-3),
    "likelihood_epochs": (10.0, 20.0),
    "short_rates": (3e-4, 1e-3, 2e-3),
    "short_epochs": (6.0,),
  }


def _smoke(config: ml_collections.ConfigDict) -> None:
  """A minute, with a grid of two settings at most."""
  config.data.test_problems = 100
  config.study.problems = (32, 64)
  config.study.baseline_problems = ()
  config.study.seeds = (0,)
  config.study.arms = ("sft", "rft", "chosen_only", "dpo", "step_dpo.branch")
  config.study.least_accuracy = 0.0
  config.study.tune = {
    "problems": 32,
    "dev_problems": 50,
    "rates": (1e-4,),
    "betas": (0.1,),
    "epochs": (2.0,),
    "likelihood_rates": (1e-3,),
    "likelihood_epochs": (5.0, 10.0),
    "short_rates": (1e-4, 3e-4),
    "short_epochs": (2.0,),
  }
