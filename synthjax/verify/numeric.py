r"""Expressions read by a small grammar of our own and evaluated at random points: exactly where they are rational, else to 100 digits.

Read: numbers, + - * / ^, implied products, \frac, \sqrt, \binom, n!, \pi, e, i, the elementary functions, brackets, and variables of one
letter or one Greek letter. Everything that can be read in two ways is refused (`Unknown`): `1/2x`, `3\frac12`, `x^23`, `sinx`, a letter
applied to a lone symbol. f, g, h, F, G, H, P and Q before a bracket are functions of which nothing is known. Text is never evaluated as
code, and what would take long (large exponents, long integers) is refused.
"""

import functools
import hashlib
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath

_DEEPEST = 30  # brackets within brackets
_LARGEST_POWER = 3_000  # exponent; and of a factorial's argument
_MOST_BITS = 40_000  # of an integer
_DIGITS = 100  # working precision
_POINTS = 5  # random points at which expressions with variables are compared

_FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "exp")
_UNKNOWN_FUNCTIONS = frozenset("fghFGHPQ")
_GREEK = frozenset(r"\alpha \beta \gamma \delta \theta \lambda \mu \rho \sigma \phi \omega \tau \epsilon \varphi \psi".split())
# Two or three small letters are a product of variables, unless they name something.
_NAMES = frozenset("""log sin cos tan cot sec csc ln exp lim max min gcd lcm mod det arg deg inf sup div abs and or not for the all any none
no yes is to of in on at by if so per two six ten one odd km cm mm kg ft mi am pm oz lb hr yd ml mg pi""".split())
_TOKEN = re.compile(r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<letters>[A-Za-z]+)"
                    r"|(?P<sign>[-+*/^!(){}\[\]]))")


def _context() -> Any:
  context = mpmath.mp.clone()
  context.dps = _DIGITS
  return context


_CONTEXT = _context()
# Relative differences; what lies between the two is not decided.
_EQUAL, _APART = _CONTEXT.mpf("1e-60"), _CONTEXT.mpf("1e-20")
# Of inexact values: beyond, cancellation could eat the digits.
_RANGE = (_CONTEXT.mpf("1e-30"), _CONTEXT.mpf("1e30"))


class Unknown(Exception):
  """The text is not such an expression, or means more than one thing, or its value would take long."""


class Node(NamedTuple):
  """An operation and its operands."""

  kind: str  # number, variable, constant, sum, product, quotient, power, negative, call, root, factorial, binomial, apply
  operands: tuple = ()
  name: str = ""  # of a variable, constant or function
  value: Fraction = Fraction(0)  # of a number


_RADIANS = Node("quotient", (Node("constant", name="pi"), Node("number", value=Fraction(180))))
Real = Fraction | Any  # a Fraction where it is exact, else a number of mpmath


class Expression(NamedTuple):
  """What was read, and the names in it."""

  root: Node
  names: frozenset[str]


@functools.lru_cache(1 << 14)
def parse(text: str) -> Expression | None:
  """The expression, or None where the text is none or can be read in two ways."""
  try:
    reader = _Reader(_tokens(text))
    root = reader.sum(0)
    if reader.left():
      return None
    return Expression(root, frozenset(_names(root)))
  except Unknown:
    return None


def _names(node: Node) -> Iterator[str]:
  if node.kind in ("variable", "constant", "apply"):
    yield node.name
  for operand in node.operands:
    yield from _names(operand)


def constant(value: Fraction) -> Expression:
  """A number."""
  return Expression(Node("number", value=value), frozenset())


def difference(left: Expression, right: Expression) -> Expression:
  """Left minus right."""
  return Expression(Node("sum", (left.root, Node("negative", (right.root,)))), left.names | right.names)


def fingerprint(expression: Expression) -> str | None:
  """The value at one point, to twenty digits: equal expressions share it."""
  point = {name: _random(name, 2) for name in expression.names - {"pi", "e", "i"}}
  try:
    found = _inexact(_Evaluation(point).value(expression.root))
  except (Unknown, ArithmeticError, ValueError):
    return None
  return _CONTEXT.nstr(found, 20)


def same(one: Expression, other: Expression) -> bool | None:
  """True where two expressions agree to 60 digits at random points, False where they are certainly apart, else None.

  e and i may be numbers or variables: equal are what is equal either way.
  """
  return _over_points(one, other, _compared)


def proportional(one: Expression, other: Expression) -> float | None:
  """The constant c with one = c * other at random points; 0.0 where there is none, None where that is not known."""
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
  """Whether an expression without variables lies within a distance of a value; None where it has no real value."""
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
  if verdicts == {True} and names & {"e", "i"}:
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
  """A variable's value at a point: between 1/2 and 3/2, then between 3 and 40, then of either sign."""
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
    self._with_i = "i" not in self._point and "i" in _names(root)
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
      if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > _MOST_BITS:
        raise Unknown
      return base ** int(exponent)
    if isinstance(exponent, Fraction) and exponent.denominator == 2:
      return _root(base, 2) ** exponent.numerator
    base, exponent = _inexact(base), _inexact(exponent)
    if isinstance(base, _CONTEXT.mpc) or isinstance(exponent, _CONTEXT.mpc) or base <= 0 or abs(exponent) > _LARGEST_POWER:
      raise Unknown
    return base ** exponent

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
    if not isinstance(argument, Fraction) or argument.denominator != 1 or not 0 <= argument <= _LARGEST_POWER:
      raise Unknown
    return Fraction(math.factorial(int(argument)))

  def _binomial(self, node: Node) -> Real:
    top, bottom = (self._of(operand) for operand in node.operands)
    if not (isinstance(top, Fraction) and isinstance(bottom, Fraction)) or top.denominator * bottom.denominator != 1:
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


def _tokens(text: str) -> list[str]:
  tokens, at = [], 0
  text = text.rstrip()
  while at < len(text):
    match = _TOKEN.match(text, at)
    if match is None:
      raise Unknown
    if match["letters"]:
      tokens += _letters(match["letters"])
    elif match["number"]:
      tokens.append(match["number"].replace(",", ""))
    else:
      tokens.append(match["command"] or match["sign"])
    at = match.end()
  if not tokens:
    raise Unknown
  return tokens


def _letters(run: str) -> list[str]:
  """A letter; the name of a function, as a command; or a product of variables."""
  if len(run) == 1:
    return [run]
  if run in _FUNCTIONS or run == "sqrt":
    return ["\\" + run]
  if len(run) > 3 or not run.islower() or run in _NAMES:
    raise Unknown
  return list(run)


class _Reader:
  """Recursive descent over the tokens."""

  def __init__(self, tokens: list[str]):
    self._tokens, self._at = tokens, 0
    self._functions = 0  # within the arguments of how many: degrees are angles there, and units elsewhere

  def left(self) -> bool:
    return self._at < len(self._tokens)

  def _peek(self, ahead: int = 0) -> str:
    at = self._at + ahead
    return self._tokens[at] if at < len(self._tokens) else ""

  def _next(self) -> str:
    token = self._peek()
    self._at += 1
    return token

  def _expect(self, token: str) -> None:
    if self._next() != token:
      raise Unknown

  def sum(self, depth: int) -> Node:
    if depth > _DEEPEST:
      raise Unknown
    terms = [self._product(depth)]
    while self._peek() in ("+", "-"):
      minus = self._next() == "-"
      term = self._product(depth)
      terms.append(Node("negative", (term,)) if minus else term)
    return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

  def _product(self, depth: int) -> Node:
    minus = False
    while self._peek() in ("+", "-"):
      minus ^= self._next() == "-"
    total = self._power(depth)
    divided = False
    while self._peek() and self._peek() not in ("+", "-", ")", "}", "]"):
      if self._peek() in ("*", "/"):
        divided = self._next() == "/"
        kind = "quotient" if divided else "product"
        total = Node(kind, (total, self._power(depth)))
        continue
      # 1/2x is one half of x or one over 2x.
      if divided:
        raise Unknown
      before = self._peek(-1)
      factor = self._power(depth)
      self._check_implied(before, total, factor)
      total = Node("product", (total, factor))
    return Node("negative", (total,)) if minus else total

  def _check_implied(self, before: str, total: Node, factor: Node) -> None:
    """Refuses products that are none: 3 4, 3\\frac12 (a mixed number), 3(2), x2."""
    leading = factor
    while leading.kind in ("power", "product", "factorial"):
      leading = leading.operands[0]
    if leading.kind == "number" and before[-1:].isalnum():
      raise Unknown
    last = total.operands[1] if total.kind == "product" else total
    if last.kind == "number" and leading.kind in ("number", "quotient") and not set(_names(leading)):
      raise Unknown

  def _power(self, depth: int) -> Node:
    base = self._atom(depth)
    while self._peek() == "!":
      self._next()
      base = Node("factorial", (base,))
    if self._peek() == r"\degree" and self._functions:
      self._next()
      return Node("product", (base, _RADIANS))
    if self._peek() != "^":
      return base
    self._next()
    return Node("power", (base, self._exponent(depth)))

  def _exponent(self, depth: int) -> Node:
    """x^{23}, x^2 and x^-2; x^23 is refused but for a whole number as base: in TeX it is x squared times 3."""
    minus = self._peek() == "-"
    if minus:
      self._next()
    token = self._peek()
    if token.isdigit() and len(token) > 1 and not self._peek(-2 - minus).isdigit():
      raise Unknown
    exponent = self._atom(depth)
    if self._peek() == "^":
      raise Unknown
    return Node("negative", (exponent,)) if minus else exponent

  def _atom(self, depth: int) -> Node:
    token = self._next()
    if token[:1].isdigit() or token[:1] == ".":
      return Node("number", value=Fraction(token))
    if token in ("(", "{", "["):
      inner = self.sum(depth + 1)
      self._expect({"(": ")", "{": "}", "[": "]"}[token])
      return inner
    if token.startswith("\\"):
      return self._command(token, depth)
    if len(token) == 1 and token.isalpha():
      return self._letter(token, depth)
    raise Unknown

  def _letter(self, letter: str, depth: int) -> Node:
    if letter in "ei":
      return Node("constant", name=letter)
    if letter in _UNKNOWN_FUNCTIONS and self._peek() in ("(", "^"):
      if self._peek() == "^" and self._is_applied_after_power():
        raise Unknown
      if self._peek() == "(":
        return Node("apply", (self._atom(depth),), name=f"{letter}()")
    if self._peek() == "(" and self._peek(2) == ")":
      raise Unknown  # y(x) and x(2) may be functions
    return Node("variable", name=letter)

  def _is_applied_after_power(self) -> bool:
    """Whether a power is followed by a bracket: f^{-1}(x)."""
    at = self._at + 1
    if at < len(self._tokens) and self._tokens[at] == "{":
      while at < len(self._tokens) and self._tokens[at] != "}":
        at += 1
    return at + 1 < len(self._tokens) and self._tokens[at + 1] == "("

  def _command(self, token: str, depth: int) -> Node:
    if token == r"\pi":
      return Node("constant", name="pi")
    if token in _GREEK:
      return Node("variable", name=token)
    if token == r"\frac":
      top = self._argument(depth)
      return Node("quotient", (top, self._argument(depth)))
    if token == r"\binom":
      top = self._argument(depth)
      return Node("binomial", (top, self._argument(depth)))
    if token == r"\sqrt":
      return self._square_root(depth)
    if token[1:] in _FUNCTIONS:
      return self._function(token[1:], depth)
    raise Unknown

  def _square_root(self, depth: int) -> Node:
    degree = Node("number", value=Fraction(2))
    if self._peek() == "[":
      self._next()
      degree = self.sum(depth + 1)
      self._expect("]")
    return Node("root", (degree, self._argument(depth)))

  def _function(self, name: str, depth: int) -> Node:
    """\\sin x, \\sin 2x, \\sin(x + 1), \\sin^2 x, \\sin 30\\degree; what goes on after the argument is refused where it may belong to it."""
    power = None
    if self._peek() == "^":
      self._next()
      power = self._atom(depth)
      if power.kind != "number":
        raise Unknown  # \sin^{-1} may be the inverse
    self._functions += 1
    if self._peek() in ("(", "{", "["):
      argument = self._power(depth)
      if argument.kind == "power":
        raise Unknown  # \sin(x)^2
    else:
      argument = self._bare_argument(depth)
    self._functions -= 1
    called = Node("call", (argument,), name=name)
    return called if power is None else Node("power", (called, power))

  def _bare_argument(self, depth: int) -> Node:
    argument = self._power(depth)
    if argument.kind == "number" and self._peek() and (self._peek().isalpha() or self._peek() in _GREEK | {r"\pi"}):
      argument = Node("product", (argument, self._power(depth)))
    following = self._peek()
    if following and following not in "+-)}]" and following[1:] not in _FUNCTIONS:
      raise Unknown
    return argument

  def _argument(self, depth: int) -> Node:
    """A group, or one character: \\frac12 is a half."""
    token = self._peek()
    if token.isdigit() and len(token) > 1:
      self._tokens[self._at] = token[1:]
      return Node("number", value=Fraction(token[0]))
    if token[:1].isdigit() and not token.isdigit():
      raise Unknown
    return self._atom(depth)
