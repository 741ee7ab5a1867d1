"""What counts as equal, beyond mathematics: every difference from math-verify 0.9.0 is a switch with a name. See docs/verify.md."""

import dataclasses

LONGEST = 256  # characters of an answer; longer ones are `too-long` before anything reads them


@dataclasses.dataclass(frozen=True)
class Policy:
  """Switches, all on in `strict`. Each takes back a yes that must not be learned from, or grants one that math-verify withholds."""

  name: str
  structure: bool = True  # answers are read by our own rules first; off: math-verify alone, and no other switch has an effect
  units: bool = True  # units of both answers, where both have one, are the same: 12 cm is not 12 m; off: units are ignored
  percent: bool = True  # a percent sign is a unit: 10 % is 10 and not 0.1; off: it is either
  names: bool = True  # what is assigned has the same name: x = 5 is not y = 5; off: names are ignored
  unevaluated: bool = True  # the answer to a plain number is a plain number: 2 + 4 is not 6; off: values are compared
  equation: bool = True  # an answer that still has to be solved is none: 5 = 3 is not 3; off: its last side is the answer
  rounding: bool = True  # a decimal stands for a value that it rounds or cuts at six or more places; off: both are rounded to six
  subscript: bool = True  # subscripted numerals compare as strings: 52_8 is not 52; off: the base is ignored
  ellipsis: bool = True  # an answer with dots stands for something unsaid: no; off: dots are ignored
  tuples: bool = True  # a tuple is not a set; off: brackets of tuples and sets are ignored, and so is the order
  intervals: bool = True  # an open end is not a closed one, and 1 < x < 2 is (1, 2); off: only the ends' values count
  digits: bool = True  # a yes of sympy's holds at 50 digits at random values, or is symbolically exact


STRICT = Policy("strict")  # rewards and accuracies; the default
# Numbers comparable with lm-evaluation-harness, which takes math-verify's word.
LM_EVAL = Policy("lm_eval", structure=False)
POLICIES = {policy.name: policy for policy in (STRICT, LM_EVAL)}
