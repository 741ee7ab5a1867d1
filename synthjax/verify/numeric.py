"""Expressions compared by their values at random points: exact where rational, else to 100 digits.

What would take long (large exponents, long integers) is refused, and no text is evaluated as code.
"""

import functools
import hashlib
import math
from fractions import Fraction
from typing import Any

import mpmath

from synthjax.verify.expressions import Expression, Node, Unknown, names_of

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
_EQUAL, _APART = _CONTEXT.mpf("1e-60"), _CONTEXT.mpf("1e-20")
# Of inexact values: beyond, cancellation could eat the digits.
_RANGE = (_CONTEXT.mpf("1e-30"), _CONTEXT.mpf("1e30"))


Real = Fraction | Any  # a Fraction where it is exact, else a number of mpmath


def constant(value: Fraction) -> Expression:
  """A number."""
  return Expression(Node("number", value=value), frozenset())


def difference(left: Expression, right: Expression) -> Expression:
  """Left minus right."""
  return Expression(
    Node("sum", (left.root, Node("negative", (right.root,)))), left.names | right.names
  )


def fingerprint(expression: Expression) -> str | None:
  """The value at one point, to twenty digits: equal expressions share it."""
  point = {name: _random(name, 2) for name in expression.names - {"pi", "e", "i"}}
  try:
    found = _inexact(_Evaluation(point).value(expression.root))
  except (Unknown, ArithmeticError, ValueError):
    return None
  return _CONTEXT.nstr(found, 20)


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

  found = _over_points(one, other, compared, at_least=3)
  if found is None:
    return None
  if not found:
    return 0.0
  ratio = ratios[0]
  if isinstance(ratio, _CONTEXT.mpc):
    return None
  return 1.0 if ratio > 0 else -1.0


def close(value: Fraction, expression: Expression, distance: Fraction) -> bool | None:
  """Whether an expression lies within a distance of a value; None where it has no real value."""
  if not expression.names <= {"pi", "e"}:
    return None
  try:
    found = _Evaluation({}).value(expression.root)
  except (Unknown, ArithmeticError, ValueError):
    return None
  if isinstance(found, _CONTEXT.mpc):
    return None
  return bool(abs(_subtracted(found, value)) < _inexact(distance))


def _over_points(one: Expression, other: Expression, compared, at_least: int = 1) -> bool | None:
  names = one.names | other.names
  verdicts = {_at_points(one, other, compared, names, at_least, frozenset())}
  # Without other variables they are the numbers.
  if verdicts == {True} and names & {"e", "i"} and names - {"pi", "e", "i"}:
    verdicts.add(_at_points(one, other, compared, names, at_least, names & {"e", "i"}))
  return verdicts.pop() if len(verdicts) == 1 else None


def _at_points(one, other, compared, names, at_least, as_variables) -> bool | None:
  variables = (names - {"pi", "e", "i"}) | as_variables
  number = _POINTS if variables else 1
  agreeing = 0
  for index in range(number):
    evaluation = _Evaluation({name: _random(name, index) for name in variables})
    try:
      verdict = compared(evaluation.value(one.root), evaluation.value(other.root))
    except (ArithmeticError, ValueError):
      continue  # not defined here
    except Unknown:
      return None
    if verdict is not True:
      return verdict
    agreeing += 1
  return True if agreeing >= min(at_least, number) and agreeing >= (2 if variables else 1) else None


@functools.lru_cache(1 << 10)
def _random(name: str, index: int) -> Fraction:
  """A variable's value: between 1/2 and 3/2, then between 3 and 40, then of either sign."""
  seed = int.from_bytes(hashlib.blake2b(f"{name} {index}".encode(), digest_size=6).digest(), "big")
  share = Fraction(seed % 99_991 + 1, 100_003)
  if index < 2:
    return Fraction(1, 2) + share
  if index < 4:
    return 3 + 37 * share
  return (3 * share + Fraction(1, 7)) * (-1 if seed & 1 else 1)


def _compared(a: Real, b: Real) -> bool | None:
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a == b
  a, b = _inexact(a), _inexact(b)
  difference, size = abs(a - b), max(abs(a), abs(b))
  if difference <= _EQUAL * max(size, 1):
    # Near zero, a difference within the working precision is no proof.
    return True if difference <= _EQUAL * size or size == 0 else None
  return False if difference > _APART * max(size, 1) else None


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

  def value(self, root: Node) -> Real:
    self._with_i = "i" not in self._point and "i" in names_of(root)
    return self._of(root)

  def _of(self, node: Node) -> Real:
    found = getattr(self, f"_{node.kind}")(node)
    if isinstance(found, Fraction):
      if max(found.numerator.bit_length(), found.denominator.bit_length()) > _MOST_BITS:
        raise Unknown
      return found
    if not _CONTEXT.isfinite(found):
      raise ArithmeticError
    if isinstance(found, _CONTEXT.mpc) and found.imag == 0:
      found = found.real
    if isinstance(found, _CONTEXT.mpc) and not self._with_i:
      raise ValueError("not real")
    if found != 0 and not _RANGE[0] < abs(found) < _RANGE[1]:
      raise Unknown
    return found

  def _number(self, node: Node) -> Real:
    return node.value

  def _variable(self, node: Node) -> Real:
    return self._point[node.name]

  def _constant(self, node: Node) -> Real:
    if node.name in self._point:
      return self._point[node.name]
    return {"pi": _CONTEXT.pi, "e": _CONTEXT.e, "i": _CONTEXT.j}[node.name] * 1

  def _sum(self, node: Node) -> Real:
    total = self._of(node.operands[0])
    for operand in node.operands[1:]:
      term = self._of(operand)
      exactly = isinstance(total, Fraction) and isinstance(term, Fraction)
      total = total + term if exactly else _inexact(total) + _inexact(term)
    return total

  def _product(self, node: Node) -> Real:
    total = self._of(node.operands[0])
    for operand in node.operands[1:]:
      factor = self._of(operand)
      exactly = isinstance(total, Fraction) and isinstance(factor, Fraction)
      total = total * factor if exactly else _inexact(total) * _inexact(factor)
    return total

  def _quotient(self, node: Node) -> Real:
    return _divided(self._of(node.operands[0]), self._of(node.operands[1]))

  def _negative(self, node: Node) -> Real:
    return -self._of(node.operands[0])

  def _power(self, node: Node) -> Real:
    base, exponent = self._of(node.operands[0]), self._of(node.operands[1])
    if isinstance(exponent, Fraction) and abs(exponent) > _LARGEST_POWER:
      raise Unknown
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
      if not isinstance(base, Fraction):
        return base ** int(exponent)
      if (
        max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > _MOST_BITS
      ):
        raise Unknown
      return base ** int(exponent)
    if isinstance(exponent, Fraction) and exponent.denominator == 2:
      return _root(base, 2) ** exponent.numerator
    base, exponent = _inexact(base), _inexact(exponent)
    if isinstance(base, _CONTEXT.mpc) or base <= 0 or abs(exponent) > _LARGEST_POWER:
      raise Unknown
    return base**exponent

  def _root(self, node: Node) -> Real:
    degree = self._of(node.operands[0])
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 2 <= degree <= 100:
      raise Unknown
    return _root(self._of(node.operands[1]), int(degree))

  def _call(self, node: Node) -> Real:
    argument = _inexact(self._of(node.operands[0]))
    if isinstance(argument, _CONTEXT.mpc) or abs(argument) > 1e6:
      raise Unknown
    return getattr(_CONTEXT, _OF_MPMATH.get(node.name, node.name))(argument)

  def _factorial(self, node: Node) -> Real:
    argument = self._of(node.operands[0])
    if (
      not isinstance(argument, Fraction)
      or argument.denominator != 1
      or not 0 <= argument <= _LARGEST_POWER
    ):
      raise Unknown
    return Fraction(math.factorial(int(argument)))

  def _binomial(self, node: Node) -> Real:
    top, bottom = (self._of(operand) for operand in node.operands)
    if (
      not (isinstance(top, Fraction) and isinstance(bottom, Fraction))
      or top.denominator * bottom.denominator != 1
    ):
      raise Unknown
    if not 0 <= bottom <= top <= _LARGEST_POWER:
      raise Unknown
    return Fraction(math.comb(int(top), int(bottom)))

  def _apply(self, node: Node) -> Real:
    """An unknown function: a smooth one of no particular kind, the same for equal arguments."""
    argument = _inexact(self._of(node.operands[0]))
    if isinstance(argument, _CONTEXT.mpc) or abs(argument) > 1e6:
      raise Unknown
    first, second = _inexact(_random(node.name, 0)), _inexact(_random(node.name, 1))
    return 2 + _CONTEXT.cos(first * argument + second) + _CONTEXT.sin(second * argument)


_OF_MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _root(base: Real, degree: int) -> Real:
  if isinstance(base, Fraction) and base >= 0 and degree == 2:
    top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
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
  return _CONTEXT.sqrt(base) if degree == 2 else _CONTEXT.root(base, degree)
