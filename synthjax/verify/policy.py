"""What counts as equal, beyond mathematics: every correction of the symbolic comparison is a switch with a name."""

import dataclasses

LONGEST = 256  # characters of an answer; longer ones are `too-long` before anything reads them


@dataclasses.dataclass(frozen=True)
class Policy:
  """Switches, all on in `strict`: each takes back a yes of math-verify 0.9.0 that is known to be wrong."""

  name: str
  fast: bool = True  # settle plain answers without sympy, and let it overrule where it is certain
  equation: bool = True  # a prediction with `=` whose left side is not one symbol is no: `5=3` is not 3
  ellipsis: bool = True  # an answer with dots stands for something unsaid: no
  subscript: bool = True  # subscripted numerals compare as strings: 52_8 is not 52
  digits: bool = True  # closed-form numbers are compared again at 50 digits: 1/2004! is not 1/2006!
  tuples: bool = True  # a tuple is not a set


STRICT = Policy("strict")  # rewards and accuracies; the default
# Numbers comparable with lm-evaluation-harness, which takes math-verify's word.
LM_EVAL = Policy("lm_eval", fast=False, equation=False, ellipsis=False, subscript=False, digits=False, tuples=False)
POLICIES = {policy.name: policy for policy in (STRICT, LM_EVAL)}
