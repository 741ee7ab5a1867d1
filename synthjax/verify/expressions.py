r"""A small grammar of our own for expressions, which refuses what can be read in two ways.

Read: numbers, + - * / ^, implied products, \frac, \sqrt, \binom, n!, \pi, e, i, the elementary
functions, brackets, and variables of one letter or one Greek letter. Refused: `1/2x`, `3\frac12`,
`x^23`, `sinx`, a letter applied to a lone symbol. f, g, h, F, G, H, P and Q before a bracket are
functions of which nothing is known. Text is never evaluated as code.
"""

import functools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_DEEPEST = 30  # brackets within brackets
_FUNCTION_NAMES = "arcsin arccos arctan sin cos tan cot sec csc sinh cosh tanh ln exp"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_UNKNOWN_FUNCTIONS = frozenset("fghFGHPQ")
_GREEK_NAMES = r"""
\alpha \beta \gamma \delta \theta \lambda \mu \rho \sigma \phi \omega \tau \epsilon \varphi \psi
"""
_GREEK = frozenset(_GREEK_NAMES.split())
# Two or three small letters are a product of variables, unless they name something.
_NAME_WORDS = """
log sin cos tan cot sec csc ln exp lim max min gcd lcm mod det arg deg inf sup div abs and or not
for the all any no yes is to of in on at by if so per two six ten one odd km cm mm kg ft mi am pm
oz lb hr yd ml mg pi
"""
_NAMES = frozenset(_NAME_WORDS.split())
_TOKEN = re.compile(
  r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
  r"|(?P<command>\\[A-Za-z]+)|(?P<letters>[A-Za-z]+)|(?P<sign>[-+*/^!(){}\[\]]))"
)


class Unknown(Exception):
  """The text is no such expression, or means more than one thing, or its value takes long."""


class Operation(NamedTuple):
  """An operation and its operands."""

  # number, variable, constant, sum, product, quotient, power, negative, call, root, factorial,
  # binomial, or apply: of an unknown function
  kind: str
  operands: tuple = ()
  name: str = ""  # of a variable, constant or function
  value: Fraction = Fraction(0)  # of a number


_RADIANS = Operation(
  "quotient", (Operation("constant", name="pi"), Operation("number", value=Fraction(180)))
)


class Expression(NamedTuple):
  """What was read, and the names in it."""

  root: Operation
  names: frozenset[str]


@functools.lru_cache(1 << 14)
def parse(text: str) -> Expression | None:
  """The expression, or None where the text is none or can be read in two ways."""
  try:
    reader = _Reader(_tokens(text))
    root = reader.sum(0)
    if reader.left():
      return None
    return Expression(root, frozenset(names_of(root)))
  except Unknown:
    return None


def names_of(node: Operation) -> Iterator[str]:
  """The names of its variables, constants and unknown functions."""
  if node.kind in ("variable", "constant", "apply"):
    yield node.name
  for operand in node.operands:
    yield from names_of(operand)


def _tokens(text: str) -> list[str]:
  tokens: list[str] = []
  at = 0
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


_CLOSING = {"(": ")", "{": "}", "[": "]"}


class _Reader:
  """Recursive descent over the tokens."""

  def __init__(self, tokens: list[str]):
    self._tokens = tokens
    self._at = 0
    # Functions around the present token: degrees are angles in their arguments, units elsewhere.
    self._depth_of_functions = 0

  def left(self) -> bool:
    return self._at < len(self._tokens)

  def _peek(self, ahead: int = 0) -> str:
    at = self._at + ahead
    if at < len(self._tokens):
      return self._tokens[at]
    return ""

  def _next(self) -> str:
    token = self._peek()
    self._at += 1
    return token

  def _expect(self, token: str) -> None:
    if self._next() != token:
      raise Unknown

  def sum(self, depth: int) -> Operation:
    if depth > _DEEPEST:
      raise Unknown
    terms = [self._product(depth)]
    while self._peek() in ("+", "-"):
      minus = self._next() == "-"
      terms.append(_signed(self._product(depth), minus))
    if len(terms) == 1:
      return terms[0]
    return Operation("sum", tuple(terms))

  def _product(self, depth: int) -> Operation:
    minus = False
    while self._peek() in ("+", "-"):
      minus ^= self._next() == "-"
    total = self._power(depth)
    divided = False
    while self._peek() and self._peek() not in ("+", "-", ")", "}", "]"):
      if self._peek() in ("*", "/"):
        kind = "product"
        divided = self._next() == "/"
        if divided:
          kind = "quotient"
        total = Operation(kind, (total, self._power(depth)))
        continue
      # 1/2x is one half of x or one over 2x.
      if divided:
        raise Unknown
      before = self._peek(-1)
      factor = self._power(depth)
      self._check_implied(before, total, factor)
      total = Operation("product", (total, factor))
    return _signed(total, minus)

  def _check_implied(self, before: str, total: Operation, factor: Operation) -> None:
    """Refuses products that are none: 3 4, 3\\frac12 (a mixed number), 3(2), x2."""
    leading = factor
    while leading.kind in ("power", "product", "factorial"):
      leading = leading.operands[0]
    if leading.kind == "number" and before[-1:].isalnum():
      raise Unknown
    last = total
    if total.kind == "product":
      last = total.operands[1]
    if last.kind != "number" or leading.kind not in ("number", "quotient"):
      return
    if not set(names_of(leading)):
      raise Unknown

  def _power(self, depth: int) -> Operation:
    base = self._atom(depth)
    while self._peek() == "!":
      self._next()
      base = Operation("factorial", (base,))
    if self._peek() == r"\degree" and self._depth_of_functions:
      self._next()
      return Operation("product", (base, _RADIANS))
    if self._peek() != "^":
      return base
    self._next()
    return Operation("power", (base, self._exponent(depth)))

  def _exponent(self, depth: int) -> Operation:
    """x^{23}, x^2 and x^-2; x^23 is x squared times 3 in TeX: refused, but for a number as base."""
    minus = self._peek() == "-"
    if minus:
      self._next()
    token = self._peek()
    base = self._peek(-2 - minus)
    if token.isdigit() and len(token) > 1 and not base.isdigit():
      raise Unknown
    exponent = self._atom(depth)
    if self._peek() == "^":
      raise Unknown
    return _signed(exponent, minus)

  def _atom(self, depth: int) -> Operation:
    token = self._next()
    if token[:1].isdigit() or token[:1] == ".":
      return Operation("number", value=Fraction(token))
    if token in ("(", "{", "["):
      inner = self.sum(depth + 1)
      self._expect(_CLOSING[token])
      return inner
    if token.startswith("\\"):
      return self._command(token, depth)
    if len(token) == 1 and token.isalpha():
      return self._letter(token, depth)
    raise Unknown

  def _letter(self, letter: str, depth: int) -> Operation:
    if letter in "ei":
      return Operation("constant", name=letter)
    if letter in _UNKNOWN_FUNCTIONS and self._peek() in ("(", "^"):
      if self._peek() == "^" and self._is_applied_after_power():
        raise Unknown
      if self._peek() == "(":
        return Operation("apply", (self._atom(depth),), name=f"{letter}()")
    if self._peek() == "(" and self._peek(2) == ")":
      raise Unknown  # y(x) and x(2) may be functions
    return Operation("variable", name=letter)

  def _is_applied_after_power(self) -> bool:
    """Whether a power is followed by a bracket: f^{-1}(x)."""
    following = self._tokens[self._at + 1 :]
    end = 0
    if following[:1] == ["{"]:
      while end < len(following) and following[end] != "}":
        end += 1
    return following[end + 1 : end + 2] == ["("]

  def _command(self, token: str, depth: int) -> Operation:
    if token == r"\pi":
      return Operation("constant", name="pi")
    if token in _GREEK:
      return Operation("variable", name=token)
    if token == r"\frac":
      top = self._argument(depth)
      return Operation("quotient", (top, self._argument(depth)))
    if token == r"\binom":
      top = self._argument(depth)
      return Operation("binomial", (top, self._argument(depth)))
    if token == r"\sqrt":
      return self._square_root(depth)
    if token[1:] in _FUNCTIONS:
      return self._function(token[1:], depth)
    raise Unknown

  def _square_root(self, depth: int) -> Operation:
    degree = Operation("number", value=Fraction(2))
    if self._peek() == "[":
      self._next()
      degree = self.sum(depth + 1)
      self._expect("]")
    return Operation("root", (degree, self._argument(depth)))

  def _function(self, name: str, depth: int) -> Operation:
    """\\sin x, \\sin 2x, \\sin(x + 1), \\sin^2 x, \\sin 30\\degree.

    What goes on after the argument is refused where it may belong to it.
    """
    power = None
    if self._peek() == "^":
      self._next()
      power = self._atom(depth)
      if power.kind != "number":
        raise Unknown  # \sin^{-1} may be the inverse
    self._depth_of_functions += 1
    if self._peek() in ("(", "{", "["):
      argument = self._power(depth)
      if argument.kind == "power":
        raise Unknown  # \sin(x)^2
    else:
      argument = self._bare_argument(depth)
    self._depth_of_functions -= 1
    call = Operation("call", (argument,), name=name)
    if power is None:
      return call
    return Operation("power", (call, power))

  def _bare_argument(self, depth: int) -> Operation:
    argument = self._power(depth)
    following = self._peek()
    is_symbol = following.isalpha() or following in _GREEK or following == r"\pi"
    if argument.kind == "number" and is_symbol:
      argument = Operation("product", (argument, self._power(depth)))
    following = self._peek()
    if following and following not in "+-)}]" and following[1:] not in _FUNCTIONS:
      raise Unknown
    return argument

  def _argument(self, depth: int) -> Operation:
    """A group, or one character: \\frac12 is a half."""
    token = self._peek()
    if token.isdigit() and len(token) > 1:
      self._tokens[self._at] = token[1:]
      return Operation("number", value=Fraction(token[0]))
    if token[:1].isdigit() and not token.isdigit():
      raise Unknown
    return self._atom(depth)


def _signed(node: Operation, minus: bool) -> Operation:
  if minus:
    return Operation("negative", (node,))
  return node
