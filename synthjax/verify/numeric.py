"""Expressions compared by their values at random points: exact where rational, else to 100 digits.

What would take long (large exponents, long integers) is refused, and no text is evaluated as code.
"""

import functools
import hashlib
import math
from fractions import Fraction
from typing import Any

import mpmath

from synthjax.verify.expressions import Expression, Operation, Unknown, names_of

_LARGEST_POWER = 3_000  # exponent; and of a factorial's argument
_MOST_BITS = 40_000  # of an integer
_DIGITS = 100  # working precision
_POINTS = 5  # random points at which expressions with variables are compared


def _context() -> Any:
  context = mpmath.mp.clone()
  context.dps = _DIGITS
  return context


_CONTEXT = _context()
# Relative differences; what lies between the two is not decided.
_EQUAL = _CONTEXT.mpf("1e-60")
_APART = _CONTEXT.mpf("1e-20")
# Of inexact values: beyond, cancellation could eat the digits.
_SMALLEST = _CONTEXT.mpf("1e-30")
_LARGEST = _CONTEXT.mpf("1e30")
_LARGEST_ARGUMENT = 1e6  # of a function: beyond, its value has lost digits
_NOT_VARIABLES = frozenset(("pi", "e", "i"))

Real = Fraction | Any  # a Fraction where it is exact, else a number of mpmath


def constant(value: Fraction) -> Expression:
  """A number."""
  return Expression(Operation("number", value=value), frozenset())


def difference(left: Expression, right: Expression) -> Expression:
  """Left minus right."""
  negative = Operation("negative", (right.root,))
  return Expression(Operation("sum", (left.root, negative)), left.names | right.names)


def fingerprint(expression: Expression) -> str | None:
  """The value at one point, to twenty digits: equal expressions share it."""
  point = {name: _random(name, 2) for name in expression.names - _NOT_VARIABLES}
  try:
    value = _Evaluation(point).value(expression.root)
    inexact = _inexact(value)
  except (Unknown, ArithmeticError, ValueError):
    return None
  return _CONTEXT.nstr(inexact, 20)


def same(one: Expression, other: Expression) -> bool | None:
  """True where two agree to 60 digits at random points, False where they are apart, else None.

  Beside variables, e and i may be numbers or variables: equal is what is equal either way.
  """
  return _over_points(one, other, _compared)


def proportional(one: Expression, other: Expression) -> float | None:
  """The sign of the constant c with one = c * other; 0.0 where there is none, None if unknown."""
  ratios: list[Any] = []

  def compared(a: Real, b: Real) -> bool | None:
    if _is_zero(a) or _is_zero(b):
      return None
    ratios.append(_divided(a, b))
    return _compared(ratios[0], ratios[-1])

  is_constant = _over_points(one, other, compared, at_least=3)
  if is_constant is None:
    return None
  if not is_constant:
    return 0.0
  ratio = ratios[0]
  if isinstance(ratio, _CONTEXT.mpc):
    return None
  if ratio > 0:
    return 1.0
  return -1.0


def close(value: Fraction, expression: Expression, distance: Fraction) -> bool | None:
  """Whether an expression lies within a distance of a value; None where it has no real value."""
  if not expression.names <= {"pi", "e"}:
    return None
  try:
    exact = _Evaluation({}).value(expression.root)
  except (Unknown, ArithmeticError, ValueError):
    return None
  if isinstance(exact, _CONTEXT.mpc):
    return None
  return bool(abs(_subtracted(exact, value)) < _inexact(distance))


def _over_points(one: Expression, other: Expression, compared, at_least: int = 1) -> bool | None:
  """The verdict that holds whether e and i are numbers or variables, else None."""
  names = one.names | other.names
  variables = names - _NOT_VARIABLES
  as_variables = names & {"e", "i"}
  verdict = _at_points(one, other, compared, variables, at_least)
  # Without other variables they are the numbers.
  if verdict is not True or not as_variables or not variables:
    return verdict
  if _at_points(one, other, compared, variables | as_variables, at_least) is True:
    return True
  return None


def _at_points(one, other, compared, variables, at_least) -> bool | None:
  num_points = 1
  defined = 1  # points that have to be in the domain of both
  if variables:
    num_points = _POINTS
    defined = max(2, min(at_least, num_points))
  agreeing = 0
  for index in range(num_points):
    point = {name: _random(name, index) for name in variables}
    evaluation = _Evaluation(point)
    try:
      value = evaluation.value(one.root)
      other_value = evaluation.value(other.root)
      verdict = compared(value, other_value)
    except (ArithmeticError, ValueError):
      continue  # not defined here
    except Unknown:
      return None
    if verdict is not True:
      return verdict
    agreeing += 1
  if agreeing >= defined:
    return True
  return None


@functools.lru_cache(1 << 10)
def _random(name: str, index: int) -> Fraction:
  """A variable's value: between 1/2 and 3/2, then between 3 and 40, then of either sign."""
  digest = hashlib.blake2b(f"{name} {index}".encode(), digest_size=6).digest()
  seed = int.from_bytes(digest, "big")
  share = Fraction(seed % 99_991 + 1, 100_003)
  if index < 2:
    return Fraction(1, 2) + share
  if index < 4:
    return 3 + 37 * share
  value = 3 * share + Fraction(1, 7)
  if seed & 1:
    return -value
  return value


def _compared(a: Real, b: Real) -> bool | None:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a == b
  a = _inexact(a)
  b = _inexact(b)
  gap = abs(a - b)
  size = max(abs(a), abs(b))
  if gap > _APART * max(size, 1):
    return False
  # Near zero, a difference within the working precision is no proof.
  if gap <= _EQUAL * size or size == 0:
    return True
  return None


def _is_zero(value: Real) -> bool:
  if isinstance(value, Fraction):
    return value == 0
  return bool(abs(value) < _APART)


def _inexact(value: Real) -> Any:
  if isinstance(value, Fraction):
    return _CONTEXT.mpf(value.numerator) / value.denominator
  return value


def _subtracted(a: Real, b: Real) -> Real:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a - b
  return _inexact(a) - _inexact(b)


def _divided(a: Real, b: Real) -> Real:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a / b
  return _inexact(a) / _inexact(b)


class _Evaluation:
  """Values of nodes at one point; complex numbers come up only where the constant i does."""

  def __init__(self, point: dict[str, Fraction]):
    self._point = point
    self._with_i = False

  def value(self, root: Operation) -> Real:
    self._with_i = "i" not in self._point and "i" in names_of(root)
    return self._of(root)

  def _of(self, node: Operation) -> Real:
    value = getattr(self, f"_{node.kind}")(node)
    if isinstance(value, Fraction):
      if _bits(value) > _MOST_BITS:
        raise Unknown
      return value
    if not _CONTEXT.isfinite(value):
      raise ArithmeticError
    if isinstance(value, _CONTEXT.mpc) and value.imag == 0:
      value = value.real
    if isinstance(value, _CONTEXT.mpc) and not self._with_i:
      raise ValueError("not real")
    if value != 0 and not _SMALLEST < abs(value) < _LARGEST:
      raise Unknown
    return value

  def _bounded(self, node: Operation) -> Any:
    """A function's argument: real, and not so large that the function loses its digits."""
    argument = _inexact(self._of(node))
    if isinstance(argument, _CONTEXT.mpc) or abs(argument) > _LARGEST_ARGUMENT:
      raise Unknown
    return argument

  def _number(self, node: Operation) -> Real:
    return node.value

  def _variable(self, node: Operation) -> Real:
    return self._point[node.name]

  def _constant(self, node: Operation) -> Real:
    if node.name in self._point:
      return self._point[node.name]
    # Times 1: pi and e of mpmath are objects that are computed when they are used.
    return _CONSTANTS[node.name] * 1

  def _sum(self, node: Operation) -> Real:
    total = self._of(node.operands[0])
    for operand in node.operands[1:]:
      term = self._of(operand)
      if isinstance(total, Fraction) and isinstance(term, Fraction):
        total = total + term
      else:
        total = _inexact(total) + _inexact(term)
    return total

  def _product(self, node: Operation) -> Real:
    total = self._of(node.operands[0])
    for operand in node.operands[1:]:
      factor = self._of(operand)
      if isinstance(total, Fraction) and isinstance(factor, Fraction):
        total = total * factor
      else:
        total = _inexact(total) * _inexact(factor)
    return total

  def _quotient(self, node: Operation) -> Real:
    dividend = self._of(node.operands[0])
    divisor = self._of(node.operands[1])
    return _divided(dividend, divisor)

  def _negative(self, node: Operation) -> Real:
    return -self._of(node.operands[0])

  def _power(self, node: Operation) -> Real:
    base = self._of(node.operands[0])
    exponent = self._of(node.operands[1])
    if isinstance(exponent, Fraction):
      if abs(exponent) > _LARGEST_POWER:
        raise Unknown
      if exponent.denominator == 1:
        if isinstance(base, Fraction) and _bits(base) * abs(exponent) > _MOST_BITS:
          raise Unknown
        return base ** int(exponent)
      if exponent.denominator == 2:
        return _root(base, 2) ** exponent.numerator
    base = _inexact(base)
    exponent = _inexact(exponent)
    if isinstance(base, _CONTEXT.mpc) or base <= 0 or abs(exponent) > _LARGEST_POWER:
      raise Unknown
    return base**exponent

  def _root(self, node: Operation) -> Real:
    degree = self._of(node.operands[0])
    if not _is_integer(degree) or not 2 <= degree <= 100:
      raise Unknown
    return _root(self._of(node.operands[1]), int(degree))

  def _call(self, node: Operation) -> Real:
    argument = self._bounded(node.operands[0])
    function = getattr(_CONTEXT, _OF_MPMATH.get(node.name, node.name))
    return function(argument)

  def _factorial(self, node: Operation) -> Real:
    argument = self._of(node.operands[0])
    if not _is_integer(argument) or not 0 <= argument <= _LARGEST_POWER:
      raise Unknown
    return Fraction(math.factorial(int(argument)))

  def _binomial(self, node: Operation) -> Real:
    top, bottom = (self._of(operand) for operand in node.operands)
    if not _is_integer(top) or not _is_integer(bottom):
      raise Unknown
    if not 0 <= bottom <= top <= _LARGEST_POWER:
      raise Unknown
    return Fraction(math.comb(int(top), int(bottom)))

  def _apply(self, node: Operation) -> Real:
    """An unknown function: a smooth one of no particular kind, the same for equal arguments."""
    argument = self._bounded(node.operands[0])
    first = _inexact(_random(node.name, 0))
    second = _inexact(_random(node.name, 1))
    return 2 + _CONTEXT.cos(first * argument + second) + _CONTEXT.sin(second * argument)


_CONSTANTS = {"pi": _CONTEXT.pi, "e": _CONTEXT.e, "i": _CONTEXT.j}
_OF_MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _is_integer(value: Real) -> bool:
  return isinstance(value, Fraction) and value.denominator == 1


def _bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def _root(base: Real, degree: int) -> Real:
  if isinstance(base, Fraction) and base >= 0 and degree == 2:
    top = math.isqrt(base.numerator)
    bottom = math.isqrt(base.denominator)
    if top * top == base.numerator and bottom * bottom == base.denominator:
      return Fraction(top, bottom)
  base = _inexact(base)
  if isinstance(base, _CONTEXT.mpc):
    raise Unknown
  if base < 0:
    if degree % 2:
      return -_CONTEXT.root(-base, degree)  # the real root
    if degree > 2:
      raise Unknown
  if degree == 2:
    return _CONTEXT.sqrt(base)
  return _CONTEXT.root(base, degree)
