"""Near misses of real golds: none is accepted that values at 50 digits refute.

The oracle shares no code with the verifier: it splits answers with rules of its own, reads
expressions with latex2sympy2_extended and evaluates them at random values with mpmath.
"""

import collections
import random
import re

import mpmath
import pytest
import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

mpmath.mp.dps = 50
_CLOSE = mpmath.mpf(10) ** -35


def refuted(one: str, other: str) -> bool | None:
  """Whether two answers differ by construction or at random values.

  False where they agree, None where neither can be said.
  """
  one = _plain(one)
  other = _plain(other)
  if one == other:
    return False
  one, unit = _without_unit(one)
  other, other_unit = _without_unit(other)
  if unit and other_unit and unit != other_unit:
    return True
  return _refuted_parts(one, other)


def _refuted_parts(one: str, other: str) -> bool | None:
  group = _group(one)
  other_group = _group(other)
  if group and other_group:
    return _refuted_groups(group, other_group)
  if group or other_group:
    return True
  sides = _sides(one)
  other_sides = _sides(other)
  if sides and other_sides:
    return _refuted_relations(sides, other_sides)
  if sides:
    return _refuted_assignment(sides, other)
  if other_sides:
    return _refuted_assignment(other_sides, one)
  values = _values(one)
  other_values = _values(other)
  if values is None or other_values is None:
    return None
  pairs = zip(values, other_values)
  return not all(abs(a - b) <= _CLOSE * max(abs(a), abs(b)) for a, b in pairs)


def _refuted_assignment(sides: list[str], single: str) -> bool | None:
  """x = 5 against 5; any other relation is no single answer."""
  is_name = re.fullmatch(r"\\?[A-Za-z]+(_\w)?(\([a-z]\))?", sides[0])
  if sides[1] not in ("=", r"\in") or not is_name:
    return True
  return refuted(sides[2], single)


def _plain(text: str) -> str:
  marks = r"\\left|\\right|\\!|\\,|\\;|\$(?=.*\$)|(?<=\S)\$$|\\displaystyle"
  text = re.sub(marks, "", text.strip())
  text = re.sub(r"\\[dt]frac", r"\\frac", text)
  text = text.removeprefix(r"\approx").replace("f(x)", "F").strip()
  text = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", text)
  return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


_WITH_UNIT = re.compile(
  r"(?P<body>.*[\d}])\s*\\(?:text|mbox)\s*\{\s*(?P<unit>[^{}]*?)\s*\}\s*(?P<power>\^\{?\d\}?)?"
  r"|(?P<angle>.*?)\s*(?P<sign>\\%|\^\{?\\circ\}?)"
  r"|\\?\$(?P<dollars>.*)"
)


def _without_unit(text: str) -> tuple[str, str]:
  """(the answer, its unit or "")."""
  found = _WITH_UNIT.fullmatch(text)
  if found is None:
    return text, ""
  if found["angle"] is not None:
    return found["angle"], found["sign"].strip("^{}")
  if found["dollars"] is not None:
    return found["dollars"], "$"
  unit = found["unit"] + (found["power"] or "")
  return found["body"], unit.replace("{", "").replace("}", "")


def _group(text: str) -> tuple[str, list[str]] | None:
  """(kind, items) of a set, union, matrix, ratio, tuple, interval or list."""
  if text.startswith(r"\{") and text.endswith(r"\}"):
    return "{}", _split(text[2:-2])
  if r"\cup" in text:
    return "cup", text.split(r"\cup")
  if text.startswith(r"\begin") and text.endswith("matrix}"):
    rows = re.sub(r"\\(?:begin|end)\{\w+\}", "", text).split(r"\\")
    cells = []
    for row in rows:
      cells += row.split("&")
    return f"matrix{len(rows)}", cells
  if ":" in text:
    return ":", text.split(":")
  opening = text[:1]
  closing = text[-1:]
  if text and opening in "([" and closing in ")]":
    inner = _split(text[1:-1])
    if len(inner) > 1 and text.count(opening) == text.count(closing) == 1:
      return opening + closing, inner
  pieces = _split(text)
  if len(pieces) > 1:
    return "", pieces
  return None


def _split(text: str) -> list[str]:
  """Items parted by commas, semicolons, "and" or "or" outside brackets."""
  items = [""]
  depth = 0
  for character in re.sub(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|;", ",", text):
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      items.append("")
    else:
      items[-1] += character
  return [item.strip() for item in items]


def _refuted_groups(group, other_group) -> bool | None:
  kind, items = group
  other_kind, other_items = other_group
  kinds = {kind, other_kind}
  if len(kinds) == 2 and kinds not in ({"", "{}"}, {"", "()"}):
    return True
  if len(items) != len(other_items) and "{}" not in kinds:
    return True
  if kinds & {"{}", "", "cup"} and kinds != {"", "()"}:
    if any(_is_alone(item, other_items) for item in items):
      return True
    return any(_is_alone(item, items) for item in other_items)
  return any(refuted(a, b) for a, b in zip(items, other_items))


def _is_alone(item: str, others: list[str]) -> bool:
  """Whether an item is certainly none of the others."""
  return all(refuted(item, other) for other in others)


def _sides(text: str) -> list[str] | None:
  """Sides and signs of a relation, in turn."""
  sign = r"\s*(\\leq?(?![a-z])|\\geq?(?![a-z])|\\neq?(?![a-z])|\\in(?![a-z])|=|<|>)\s*"
  pieces = re.split(sign, text)
  if len(pieces) < 3:
    return None
  return pieces


def _refuted_relations(one: list[str], other: list[str]) -> bool | None:
  if len(one) != len(other):
    return True
  if len(one) > 3:
    return _refuted_chains(one, other)
  left, sign, right = one
  other_left, other_sign, other_right = other
  residual = _values(f"({left})-({right})")
  other_residual = _values(f"({other_left})-({other_right})")
  if residual is None or other_residual is None:
    return None
  if any(abs(value) < _CLOSE for value in [*residual, *other_residual]):
    return True
  ratios = [a / b for a, b in zip(residual, other_residual)]
  if any(abs(ratio - ratios[0]) > _CLOSE * abs(ratio) for ratio in ratios):
    return True
  if not _symbols(left) and not _symbols(right):
    return True
  if sign == "=" or other_sign == "=":
    return sign != other_sign
  is_flipped = _is_downwards(sign) != _is_downwards(other_sign)
  if (sign in "<>") != (other_sign in "<>"):
    return True  # one of them is strict
  return is_flipped == (ratios[0].real > 0)


def _refuted_chains(one: list[str], other: list[str]) -> bool:
  for index, (a, b) in enumerate(zip(one, other)):
    is_sign = index % 2 == 1
    if is_sign and a != b:
      return True
    if not is_sign and refuted(a, b):
      return True
  return False


def _is_downwards(sign: str) -> bool:
  return sign in ("<", r"\le", r"\leq")


def _symbols(text: str) -> list[str]:
  return re.findall(r"(?<![\\A-Za-z])[A-Za-z]|\\(?:theta|alpha|beta)", text)


def _values(text: str) -> list | None:
  """Values at four random points, which depend on the symbols by their names."""
  config = ConversionConfig(lowercase_symbols=False)
  try:
    expression = latex2sympy(text.replace("%", ""), conversion_config=config)
    if not isinstance(expression, sympy.Expr):
      return None
    symbols = sorted(expression.free_symbols, key=str)
    function = sympy.lambdify(symbols, expression.doit(), "mpmath")
    points = []
    for index in range(4):
      drawn = [_random_value(symbol, index) for symbol in symbols]
      points.append(mpmath.mpmathify(function(*drawn)))
    if all(mpmath.isfinite(point) for point in points):
      return points
  except Exception:
    pass
  return None


def _random_value(symbol, index: int):
  return mpmath.mpf(random.Random(f"{symbol} {index}").uniform(0.3, 3.0))


# Mutations: each returns a near miss of a gold, or None where it has no place in it.

_VARIABLE = r"(?<![\\A-Za-z{])[a-z](?![A-Za-z}])"
_UNIT = re.compile(r"\\(?:text|mbox)\{ *([a-z]+)\}$")
_BRACKETS = re.compile(r"(\\left)?([(\[])(.*?)(\\right)?([)\]])")


def _swapped(text, random_, pattern, new):
  """One random match replaced, by a text or by what a function makes of the match."""
  matches = list(re.finditer(pattern, text))
  if not matches:
    return None
  match = random_.choice(matches)
  if callable(new):
    new = new(match)
  return text[: match.start()] + new + text[match.end() :]


def _sign(text, random_):
  def other(match):
    return "-" if "+" in match[0] else "+"

  return _swapped(text, random_, r"(?<=[\w}) ])\s*[-+]\s*(?=[\w\\(])", other)


def _negated(text, random_):
  if text.startswith("-"):
    return text[1:]
  if re.match(r"[\d\\a-z]", text) and "," not in text and "=" not in text:
    return "-" + text
  return None


def _digit(text, random_):
  def other(match):
    return str((int(match[0]) + random_.randint(1, 9)) % 10)

  return _swapped(text, random_, r"(?<!\^)\d", other)


def _digit_dropped(text, random_):
  return _swapped(text, random_, r"(?<=\d)\d", "")


def _digit_added(text, random_):
  def digit(match):
    return str(random_.randint(1, 9))

  return _swapped(text, random_, r"(?<=\d)(?=[^\d]|$)", digit)


def _exponent(text, random_):
  def larger(match):
    exponent = int(re.sub(r"[^0-9]", "", match[0]))
    return f"^{{{exponent + random_.randint(1, 3)}}}"

  return _swapped(text, random_, r"\^\{?\d\}?", larger)


def _exponent_dropped(text, random_):
  return _swapped(text, random_, r"\^\{?\d\}?", "")


def _exponent_added(text, random_):
  def squared(match):
    return match[0] + "^2"

  return _swapped(text, random_, _VARIABLE + r"(?!\^)|(?<=\\pi)", squared)


def _power_of_unit(text, random_):
  if not _UNIT.search(text):
    return None
  return f"{text}^{random_.randint(2, 4)}"


def _unit(text, random_):
  if not _UNIT.search(text):
    return None
  return _UNIT.sub(r"\\text{ kg}", text)


def _scale_word(text, random_):
  if not re.fullmatch(r"-?[\d.]*[1-9]\d*", text):
    return None
  scales = [r"\text{ million}", " thousand", r"\text{ dozen}", " hundred", "e3"]
  return text + random_.choice(scales)


_WORDS = (
  " less than x| tenths| choose two| not| xy| sec x| or 7| \\pi|!| squared| times 2|x|"
  "\\% of 3| mod 3"
)


def _word(text, random_):
  return text + random_.choice(_WORDS.split("|"))


def _scale(text, random_):
  def scaled(match):
    number = match[0]
    return random_.choice([number + "0", number + "00", "0.0" + number.replace(".", "")])

  return _swapped(text, random_, r"\d+(?:\.\d+)?", scaled)


def _name(text, random_):
  def other(match):
    return random_.choice([letter for letter in "xyzabkmnt" if letter != match[0]])

  return _swapped(text, random_, _VARIABLE, other)


def _capital(text, random_):
  def capital(match):
    # E and I would be read as e and i are.
    return "Z" if match[0] in "ei" else match[0].upper()

  if r"\text" in text:
    return None
  return _swapped(text, random_, _VARIABLE, capital)


def _pi(text, random_):
  return _swapped(text, random_, r"\\pi(?![a-z])", random_.choice(["", "3.14", r"\pi^2"]))


def _root(text, random_):
  new = random_.choice(["", r"\sqrt[3]", r"2\sqrt"])
  return _swapped(text, random_, r"\\sqrt(?=\{)", new)


def _inverted(text, random_):
  def inverse(match):
    return rf"\frac{{{match[2]}}}{{{match[1]}}}"

  return _swapped(text, random_, r"\\frac\{([^{}]*)\}\{([^{}]*)\}", inverse)


def _function(text, random_):
  others = {r"\sin": r"\cos", r"\cos": r"\tan", r"\tan": r"\cot"}
  return _swapped(text, random_, r"\\(?:sin|cos|tan)", lambda match: others[match[0]])


def _order(text, random_):
  """The first two parts of a group in the other order."""
  body = _BRACKETS.fullmatch(text)
  if body is None:
    return None
  items = _split(body[3])
  if len(items) < 2 or items[0] == items[1]:
    return None
  items[:2] = [items[1], items[0]]
  return body[2] + ", ".join(items) + body[5]


def _brackets(text, random_):
  body = _BRACKETS.fullmatch(text)
  if body is None or len(_split(body[3])) < 2:
    return None
  opening = {"(": "[", "[": "("}[body[2]]
  return random_.choice([opening + body[3] + body[5], r"\{" + body[3] + r"\}"])


def _brackets_dropped(text, random_):
  if "\\" in text or not re.search(r"\w\(|\)\w", text):
    return None
  return text.replace("(", "").replace(")", "")


def _broken_box(text, random_):
  return text + random_.choice(["} , 5", "}", " }{ 2", r"} \boxed{3"])


def _item_dropped(text, random_):
  items = _split(text)
  if len(items) < 2 or not re.match(r"[\d\\-]", text):
    return None
  return ",".join(items[1:])


def _item_added(text, random_):
  return f"{text}, {random_.randint(50, 99)}"


def _relation(text, random_):
  def other(match):
    signs = ("<", ">", r"\le", "=")
    return random_.choice([sign for sign in signs if sign != match[0].rstrip("q")])

  return _swapped(text, random_, r"\\leq?(?![a-z])|\\geq?(?![a-z])|<|>|=", other)


def _infinity(text, random_):
  def other(match):
    return r"\infty" if "-" in match[0] else r"-\infty"

  return _swapped(text, random_, r"-?\\infty", other)


def _nothing_said(text, random_):
  return "1=2" if "=" in text else None


def _base(text, random_):
  return _swapped(text, random_, r"_\{?\d+\}?", random_.choice(["", "_3"]))


def _percent(text, random_):
  return rf"{text}00\%" if re.fullmatch(r"0?\.?\d", text) else None


def _unevaluated(text, random_):
  if not re.fullmatch(r"\d{1,6}", text):
    return None
  part = random_.randint(1, 9)
  return f"{int(text) - part}+{part}"


_OF_NUMBERS = (_sign, _negated, _digit, _digit_dropped, _digit_added)
_OF_EXPONENTS = (_exponent, _exponent_dropped, _exponent_added, _power_of_unit)
_OF_WORDS = (_unit, _scale_word, _word, _scale, _name, _capital)
_OF_FORMULAS = (_pi, _root, _inverted, _function)
_OF_GROUPS = (_order, _brackets, _brackets_dropped, _broken_box, _item_dropped, _item_added)
_OF_MEANING = (_relation, _infinity, _nothing_said, _base, _percent, _unevaluated)
# The order is part of the draw.
MUTATIONS = (*_OF_NUMBERS, *_OF_EXPONENTS, *_OF_WORDS, *_OF_FORMULAS, *_OF_GROUPS, *_OF_MEANING)
# The verifier refuses them whatever their values are.
REFUSED = (_unevaluated, _broken_box, _nothing_said, _unit, _scale_word, _base)


def mutants(all_golds, random_):
  """(mutation, gold, mutant): up to three a gold, mutations that fit few golds first."""
  cases = []
  counts = collections.Counter()
  for gold in all_golds:
    mutations = list(MUTATIONS)
    random_.shuffle(mutations)
    mutations.sort(key=lambda mutation: counts[mutation] // 100)
    made = 0
    for mutation in mutations:
      mutant = mutation(gold, random_)
      if mutant is None or re.sub(r"\s", "", mutant) == re.sub(r"\s", "", gold):
        continue
      cases.append((mutation, gold, mutant))
      counts[mutation] += 1
      made += 1
      if made == 3:
        break
  return cases


@pytest.mark.slow
def test_no_near_miss_is_accepted_that_values_refute(judge, golds):
  random_ = random.Random(13)
  cases = mutants(golds(random_), random_)
  assert len(cases) >= 5_000
  assert len({mutation for mutation, _, _ in cases}) >= 28
  verdicts = judge.compare_many([(gold, mutant) for _, gold, mutant in cases])
  incorrect = []
  for (mutation, gold, mutant), verdict in zip(cases, verdicts):
    if not verdict.correct:
      continue
    if mutation in REFUSED or refuted(gold, mutant) is not False:
      incorrect.append((mutation.__name__, gold, mutant))
  assert incorrect == []
