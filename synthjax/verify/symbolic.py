"""Equality of mathematics through math-verify 0.9.0, every yes of which is guarded. Runs in worker processes only.

Text is parsed by latex2sympy2_extended's grammar (ANTLR): it is never evaluated as Python, and math-verify's plain-expression reader, which
would hand it to sympy's `parse_expr`, is not used.
"""

import functools
import logging
import re
import warnings

from synthjax.records import Verdict
from synthjax.verify import fast
from synthjax.verify.policy import Policy

_TOLERANCE = {False: "1e-30", True: "1e-6"}  # relative, at 50 digits; with a decimal among the answers as wide as its digits
_SUBSCRIPT = re.compile(r"\d\s*_\s*\{?\s*\d")
_ELLIPSIS = re.compile(r"\\[lcd]?dots|\.\.\.|\N{HORIZONTAL ELLIPSIS}")
_ONE_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?")
_EQUALS = re.compile(r"(?<![\\<>!:])=")


def compare(gold: str, prediction: str, policy: Policy) -> Verdict:
  """`equal`, `different`, or `undecided` with the reason. Never raises; may take any time and memory."""
  try:
    wanted = parse(gold)
    if wanted is None:
      return Verdict("undecided", "unparsed-gold")
    found = parse(prediction)
    if found is None:
      return Verdict("undecided", "unparsed-prediction")
    import math_verify

    same = math_verify.verify(wanted, found, timeout_seconds=None, raise_on_error=True)
    return Verdict("equal" if same and not objection(gold, prediction, wanted, found, policy) else "different")
  except MemoryError:
    return Verdict("undecided", "memory")
  except Exception:
    return Verdict("undecided", "error")


def parse(text: str):
  """A sympy object, or None where the grammar does not take the text."""
  import math_verify

  found = math_verify.parse(r"\boxed{" + _mended(text) + "}", _extraction(), fallback_mode="no_fallback",
                            extraction_mode="first_match", parsing_timeout=None)
  return found[0] if found and not isinstance(found[0], str) else None


def objection(gold: str, prediction: str, wanted, found, policy: Policy) -> str:
  """The name of the policy's switch that takes back a yes, or ""."""
  for name, guard in _GUARDS.items():
    if getattr(policy, name) and guard(gold, prediction, wanted, found):
      return name
  return ""


def _equation(gold, prediction, wanted, found) -> bool:
  left, equals, _ = fast.clean(prediction).partition("=")
  one_symbol = _ONE_SYMBOL.fullmatch(left.strip())
  return bool(equals) and bool(_EQUALS.search(prediction)) and not one_symbol and not _EQUALS.search(gold)


def _ellipsis(gold, prediction, wanted, found) -> bool:
  return bool(_ELLIPSIS.search(prediction) or _ELLIPSIS.search(gold)) and _compact(gold) != _compact(prediction)


def _subscript(gold, prediction, wanted, found) -> bool:
  return bool(_SUBSCRIPT.search(gold) or _SUBSCRIPT.search(prediction)) and _compact(gold) != _compact(prediction)


def _digits(gold, prediction, wanted, found) -> bool:
  import sympy

  numbers = [x for x in (wanted, found) if isinstance(x, sympy.Expr) and not x.free_symbols]
  if len(numbers) < 2 or "%" in gold + prediction:
    return False
  one, other = (sympy.N(x.doit(), 50) for x in numbers)
  if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
    return False
  tolerance = sympy.Float(_TOLERANCE[wanted.has(sympy.Float) or found.has(sympy.Float)], 50)
  return bool(abs(one - other) > tolerance * max(abs(one), abs(other)))


def _tuples(gold, prediction, wanted, found) -> bool:
  brackets = {_opening(gold), _opening(prediction)}
  return brackets == {"(", r"\{"}


def _opening(text: str) -> str:
  cleaned = fast.clean(text).replace(r"\word", "").strip()
  return next((bracket for bracket in (r"\{", "(") if cleaned.startswith(bracket)), "")


_GUARDS = {"equation": _equation, "ellipsis": _ellipsis, "subscript": _subscript, "digits": _digits, "tuples": _tuples}


def _compact(text: str) -> str:
  return re.sub(r"\s|\\word|[{}]", "", fast.clean(text))


def _mended(text: str) -> str:
  """The spellings that the grammar misreads: a final full stop, ASCII pi, thousands apart, e-notation, a fraction of bare symbols."""
  text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text.strip())
  text = re.sub(r"(?<=\d),?(?:\\[,!]|\{,\})(?=\d{3}(?!\d))", "", text)
  text = re.sub(r"\\([dt]?)frac\s*(\\?[A-Za-z]+|\d)\s*(\d|\\[A-Za-z]+)", r"\\\1frac{\2}{\3}", text)
  text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1 \\cdot 10^{\2}", text)
  return re.sub(r"(?<!\.)[.,;]$", "", text.rstrip())


@functools.cache
def _extraction():
  import math_verify

  # math-verify says at every call without a time limit that there is none: ours is the pool's.
  logging.getLogger("math_verify").setLevel(logging.ERROR)
  return [math_verify.LatexExtractionConfig(boxed_match_priority=0)]


def warn_of_ground_types() -> None:
  """Warns where sympy computes with gmpy2 or flint: such a call cannot be interrupted."""
  from sympy.external.gmpy import GROUND_TYPES

  if GROUND_TYPES != "python":
    warnings.warn(f"sympy computes with {GROUND_TYPES}: a long computation inside it cannot be interrupted; set SYMPY_GROUND_TYPES=python",
                  stacklevel=2)
