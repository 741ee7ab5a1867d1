"""One worker of the pool: reads a case a line from its standard input, answers with a line.

Imports no JAX. Started as `python -m synthjax.verify.worker MEMORY_BYTES`; a line is the JSON list
[gold, prediction, policy].
"""

import json
import os
import resource
import sys

MOST_DIGITS = 20_000  # of an integer that is turned into text, or read from it


def main() -> None:
  """Serves until its input ends."""
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # whatever a library prints stays out of the answers
  os.environ["SYMPY_GROUND_TYPES"] = "python"  # a call into GMP could not be interrupted
  memory = int(sys.argv[1])
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  sys.set_int_max_str_digits(MOST_DIGITS)

  # Imported under the limits, and after the environment that sympy reads at its import.
  import dataclasses

  from synthjax.verify import symbolic
  from synthjax.verify.policy import EqualityPolicy

  symbolic.warn_of_ground_types()
  symbolic.warm_up()
  _say(answers, {"ready": os.getpid()})
  for line in sys.stdin:
    gold, prediction, policy = json.loads(line)
    verdict = symbolic.compare(gold, prediction, EqualityPolicy(**policy))
    _say(answers, dataclasses.asdict(verdict))


def _say(answers, value) -> None:
  answers.write(json.dumps(value) + "\n")
  answers.flush()


if __name__ == "__main__":
  main()
