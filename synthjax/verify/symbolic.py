"""What the forms leave open, judged by math-verify 0.9.0 and sympy; every yes is guarded.

Runs in worker processes only. Text is parsed by latex2sympy2_extended's grammar (ANTLR): it is
never evaluated as Python, and math-verify's plain-expression reader, which would hand it to sympy's
`parse_expr`, is not used.
"""

import functools
import hashlib
import logging
import re
import warnings

from synthjax.records import Verdict
from synthjax.verify import fast, forms, numerals, spelling
from synthjax.verify.policy import STRICT, EqualityPolicy

_DIGITS = 50
_TOLERANCE = "1e-40"  # relative, at 50 digits
_POINTS = 4  # random values of the variables
_RUN = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|[A-Z]{2,3}(?![A-Za-z]))")
_KNOWN_WORDS = """
sqrt sin cos tan log pmatrix bmatrix vmatrix matrix array cases arcsin arccos arctan sinh cosh tanh
"""
_KNOWN_RUNS = frozenset(_KNOWN_WORDS.split())
# The grammar leaves these out.
_NO_MATHEMATICS = (r"\degree", r"\boxed", r"\approx", "$", "%", "&&")
# 1/2x is one half of x or one over 2x; \sqrt31 is the root of 31 or, as TeX has it, that of 3.
_AMBIGUOUS = re.compile(
  r"\\sqrt\s*\d\d|\\frac\s*\d{3}|"
  r"/\s*(?:\d+(?:\.\d+)?|[A-Za-z])\s*(?:[A-Za-z(]|\\(?!cdot|cup|leq|geq|neq|in\b)[a-z])"
)


class Open(Exception):
  """What cannot be decided; the message is the reason."""


def compare(gold: str, prediction: str, policy: EqualityPolicy) -> Verdict:
  """The verdict, `undecided` with its reason. Never raises; may take any time and memory."""
  try:
    if not policy.structure:
      return _alone(gold, prediction)
    leaf = _Leaf(policy)
    same = fast.compare(gold, prediction, policy, leaf)
    if same is None:
      return Verdict("undecided", leaf.reason or "unread")
    return _verdict(same)
  except MemoryError:
    return Verdict("undecided", "memory")
  except Exception as e:
    return Verdict("undecided", f"error: {type(e).__name__}")


def _verdict(same: bool) -> Verdict:
  if same:
    return Verdict("equal")
  return Verdict("different")


class _Leaf:
  """Judges two parts by sympy; remembers why one was left open."""

  def __init__(self, policy: EqualityPolicy):
    self._policy = policy
    self.reason = ""

  def __call__(self, gold: str, prediction: str) -> bool | None:
    try:
      return _same(gold, prediction, self._policy)
    except Open as e:
      self.reason = self.reason or str(e)
      return None
    except MemoryError:
      raise
    except Exception as e:
      self.reason = self.reason or f"error: {type(e).__name__}"
      return None


def _same(gold: str, prediction: str, policy: EqualityPolicy) -> bool:
  import math_verify
  import sympy

  _extraction()
  wanted = _read(gold, "gold")
  given = _read(prediction, "prediction")

  asks_for_number = policy.unevaluated and isinstance(forms.form(gold), numerals.Number)
  if asks_for_number and not isinstance(given, sympy.Number):
    return False  # before anything is computed: 10^8! for 42
  relational = sympy.core.relational.Relational
  wants_relation = isinstance(wanted, relational)
  gives_relation = isinstance(given, relational)
  if wants_relation != gives_relation and not isinstance(given, sympy.Set):
    return False
  if not math_verify.verify(wanted, given, timeout_seconds=None, raise_on_error=True):
    return False
  if not policy.digits:
    return True
  if wants_relation and gives_relation:
    return _same_solutions(wanted, given)
  if isinstance(wanted, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase):
    if wanted.shape != given.shape:
      return False
    return all(_agree(one, other) for one, other in zip(wanted, given))
  if isinstance(wanted, sympy.Expr) and isinstance(given, sympy.Expr):
    distance = "0"
    if policy.rounding:
      # Compared as text, where "0" is the least.
      distance = max(_rounding(gold), _rounding(prediction))
    return _agree(wanted, given, distance)
  return wanted == given or _sets_agree(wanted, given)


def _read(text: str, which: str):
  """A sympy object. Raises Open where the grammar may read the text otherwise than its writer."""
  if not spelling.is_balanced(text):
    raise Open(f"unbalanced-{which}")
  if r"\word" in text or isinstance(forms.form(text), forms.Phrase) or _words(text):
    raise Open(f"words-in-{which}")
  if _AMBIGUOUS.search(text):
    raise Open(f"ambiguous-{which}")
  if any(sign in text for sign in _NO_MATHEMATICS):
    raise Open(f"unparsed-{which}")
  parsed = parse(text)
  if parsed is None:
    raise Open(f"unparsed-{which}")
  return parsed


def _words(text: str) -> bool:
  return any(run.lower() not in _KNOWN_RUNS for run in _RUN.findall(text))


def parse(text: str):
  """A sympy object, or None where the grammar does not take the text; capitals stay."""
  from latex2sympy2_extended import latex2sympy, normalize_latex
  from latex2sympy2_extended.latex2sympy2 import ConversionConfig
  from latex2sympy2_extended.math_normalization import NormalizationConfig
  from math_verify.grader import should_treat_as_complex

  rules = NormalizationConfig(
    basic_latex=True,
    units=False,
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
  )
  try:
    normal = normalize_latex(_mended(text), rules)
    return latex2sympy(
      normal,
      is_real=not should_treat_as_complex(normal),
      convert_degrees=False,
      normalization_config=None,
      conversion_config=ConversionConfig(lowercase_symbols=False),
    )
  except MemoryError:
    raise
  except Exception:
    return None


def _values(expressions) -> list[dict]:
  """Random values of the free symbols, of both signs, the same for a name in every expression."""
  import sympy

  free: set = set()
  for expression in expressions:
    free |= expression.free_symbols
  symbols = sorted(free, key=str)
  if not symbols:
    return [{}]
  points = []
  for index in range(_POINTS):
    point = {}
    for symbol in symbols:
      digest = hashlib.blake2b(f"{symbol} {index}".encode(), digest_size=6).digest()
      seed = int.from_bytes(digest, "big")
      value = sympy.Rational(seed % 99_991 + 50_000, 50_021)
      if index == _POINTS - 1 and seed & 1:
        value = -value
      point[symbol] = value
    points.append(point)
  return points


def _rounding(text: str) -> str:
  """Within which a decimal of six or more places stands for a value; "0" for all else."""
  number = forms.form(text)
  if isinstance(number, numerals.Number) and number.places >= 6:
    return f"1e-{number.places}"
  return "0"


def _agree(one, other, distance: str = "0") -> bool:
  """Whether two expressions agree at 50 digits at random values.

  Where they have no values, their difference must be zero symbolically.
  """
  import sympy

  one = one.doit()
  other = other.doit()
  tolerance = sympy.Float(_TOLERANCE, _DIGITS)
  rounding = sympy.Float(distance, _DIGITS)
  has_values = False
  for point in _values((one, other)):
    a = sympy.N(one.subs(point), _DIGITS)
    b = sympy.N(other.subs(point), _DIGITS)
    if not (_is_value(a) and _is_value(b)):
      continue
    if abs(a - b) > max(tolerance * max(abs(a), abs(b)), rounding):
      return False
    has_values = True
  if has_values:
    return True
  return bool(one == other or sympy.simplify(one - other) == 0)


def _is_value(number) -> bool:
  """Whether sympy evaluated an expression to the end, and to something finite."""
  import sympy

  if not number.is_number or number.is_finite is False or number.free_symbols:
    return False
  return not number.has(sympy.Function)


def _sets_agree(one, other) -> bool:
  import sympy

  if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
    ends = one.left_open == other.left_open and one.right_open == other.right_open
    return ends and _agree(one.start, other.start) and _agree(one.end, other.end)
  if isinstance(one, sympy.Set) and isinstance(other, sympy.Set):
    return one.symmetric_difference(other) == sympy.S.EmptySet
  return False


def _same_solutions(one, other) -> bool:
  """Whether two relations of one kind have solutions, and the same ones, in one of their symbols.

  Solutions are compared at random values of the other symbols.
  """
  import sympy

  symbols = one.free_symbols
  if type(one) is not type(other) or not symbols or symbols != other.free_symbols:
    return False
  if not isinstance(one, sympy.Eq):
    return bool(_agree(one.lhs - one.rhs, other.lhs - other.rhs))
  for symbol in sorted(symbols, key=str):
    roots = sympy.solve(one, symbol)
    other_roots = sympy.solve(other, symbol)
    if roots and len(roots) == len(other_roots) and _same_roots(roots, other_roots):
      return True
  return False


def _same_roots(ones: list, others: list) -> bool:
  left = list(others)
  for one in ones:
    match = next((other for other in left if _agree(one, other)), None)
    if match is None:
      return False
    left.remove(match)
  return True


def _mended(text: str) -> str:
  """Mends what the grammar misreads: e-notation, a fraction of bare symbols, thousands apart."""
  text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text.strip())
  text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
  text = re.sub(r"\\frac\s*(\\?[A-Za-z]+|\d)\s*(\d|\\[A-Za-z]+)", r"\\frac{\1}{\2}", text)
  text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1 \\cdot 10^{\2}", text)
  return text.replace("*", r" \cdot ")


def _alone(gold: str, prediction: str) -> Verdict:
  """math-verify's word on the two answers as they stand."""
  import math_verify

  parsed = []
  for which, text in (("gold", gold), ("prediction", prediction)):
    candidates = math_verify.parse(
      r"\boxed{" + text + "}",
      _extraction(),
      fallback_mode="no_fallback",
      extraction_mode="first_match",
      parsing_timeout=None,
    )
    if not candidates:
      return Verdict("undecided", f"unparsed-{which}")
    parsed.append(candidates[0])
  same = math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=True)
  return _verdict(same)


@functools.cache
def _extraction():
  import math_verify

  # math-verify says at every call without a time limit that there is none: ours is the pool's.
  logging.getLogger("math_verify").setLevel(logging.ERROR)
  return [math_verify.LatexExtractionConfig(boxed_match_priority=0)]


def warm_up() -> None:
  """Loads sympy and ANTLR's tables, so that they do not count against the first case's deadline."""
  # The forms would settle these: the symbolic comparison is asked directly.
  leaf = _Leaf(STRICT)
  for answer in (r"\frac{\sqrt{x} + 1}{2}", "|x| + 3", "x^2 + 3"):
    leaf("x^2 + 3", answer)


def warn_of_ground_types() -> None:
  """Warns where sympy computes with gmpy2 or flint: such a call cannot be interrupted."""
  from sympy.external.gmpy import GROUND_TYPES

  if GROUND_TYPES != "python":
    warnings.warn(
      f"sympy computes with {GROUND_TYPES}: a long computation inside it cannot be interrupted; "
      "set SYMPY_GROUND_TYPES=python",
      stacklevel=2,
    )
