"""The phase diagram of credit assignment: where it pays to know the wrong step of a trace.

Command:   python -m synthjax run --config configs/credit_phase.py --workdir runs/credit_phase
Hardware:  CPU, one process; about 10 minutes of CPU time, put together from parts of the run.
Expected:  at equal traces credit pays from u = 0.25 on unless contexts are few or traces many; at
           equal sampling it pays nowhere that the planes look (docs/study_a.md).
Source:    the setting and the theory are in docs/study_a.md; sizes and grids are our choice.
"""

import ml_collections

# The examples of docs/study_a.md as (u, p, L, V, S).
TABLE = (
  (0.0, 0.3, 10, 100, 8),
  (0.0, 0.05, 10, 100, 8),
  (0.5, 0.3, 3, 100, 8),
  (0.5, 0.3, 10, 100, 8),
  (0.5, 0.3, 10, 100, 64),
  (0.5, 0.3, 10, 3, 8),
)
FIELDS = ("survival", "success", "length", "contexts", "traces")
VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """`smoke`: a few cells of small problems, seconds."""
  study = {"table": tuple(dict(zip(FIELDS, row)) for row in TABLE)}
  if variant == "smoke":
    study = _smoke()
  return ml_collections.ConfigDict(
    {
      "name": "credit_phase",
      "recipe": "credit_phase",
      "credit_phase": study,
    }
  )


def _smoke() -> dict:
  small = {"length": 3, "contexts": 5, "traces": 4, "problems": 8}
  return {
    "base": small,
    "survivals": (0.0, 0.5),
    "successes": (0.2, 0.3),
    "lengths": (2,),
    "contexts": (3,),
    "traces": (2,),
    "rollouts": (2, 0),
    "priced_rollouts": (2,),
    "sampling_rollouts": 2,
    "table": ({**small, "survival": 0.5},),
    "tuning": {
      "rates": (0.1, 1.0),
      "betas": (0.1,),
      "temperatures": (0.05,),
      "steps": (10,),
      "tuning_replicates": 2,
      "replicates": 2,
    },
  }
