"""Near misses of real golds: none is accepted that values at 50 digits refute. And other spellings of them: all are accepted.

The oracle shares no code with the verifier: it splits answers with rules of its own, reads expressions with latex2sympy2_extended and
evaluates them at random values with mpmath.
"""

import collections
import random
import re

import mpmath
import pytest

from synthjax import files
from synthjax.verify import extract, pool
from synthjax.verify.policy import STRICT

mpmath.mp.dps = 50
_CLOSE = mpmath.mpf(10) ** -35


# The oracle.


def refuted(one: str, other: str) -> bool | None:
  """True where two answers differ by construction or at random values, False where they agree, None where neither can be said."""
  one, other = _plain(one), _plain(other)
  if one == other:
    return False
  one, unit = _without_unit(one)
  other, other_unit = _without_unit(other)
  if unit and other_unit and unit != other_unit:
    return True
  return _refuted_parts(one, other)


def _refuted_parts(one: str, other: str) -> bool | None:
  groups = _group(one), _group(other)
  if groups[0] and groups[1]:
    return _refuted_groups(*groups)
  if bool(groups[0]) != bool(groups[1]):
    return True
  relations = _sides(one), _sides(other)
  if relations[0] and relations[1]:
    return _refuted_relations(*relations)
  if relations[0] or relations[1]:
    sides = relations[0] or relations[1]
    if sides[1] not in ("=", r"\in") or not re.fullmatch(
      r"\\?[A-Za-z]+(_\w)?(\([a-z]\))?", sides[0]
    ):
      return True
    return refuted(sides[2], other if relations[0] else one)
  values = _values(one), _values(other)
  if values[0] is None or values[1] is None:
    return None
  return not all(abs(a - b) <= _CLOSE * max(abs(a), abs(b)) for a, b in zip(*values))


def _plain(text: str) -> str:
  text = re.sub(
    r"\\left|\\right|\\!|\\,|\\;|\$(?=.*\$)|(?<=\S)\$$|\\displaystyle", "", text.strip()
  )
  text = (
    re.sub(r"\\[dt]frac", r"\\frac", text).removeprefix(r"\approx").replace("f(x)", "F").strip()
  )
  text = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", text)
  return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def _without_unit(text: str) -> tuple[str, str]:
  found = re.fullmatch(
    r"(.*[\d}])\s*\\(?:text|mbox)\s*\{\s*([^{}]*?)\s*\}\s*(\^\{?\d\}?)?|(.*?)\s*(\\%|\^\{?\\circ\}?)|()\\?\$(.*)",
    text,
  )
  if found is None:
    return text, ""
  if found[4] is not None:
    return found[4], found[5].strip("^{}")
  if found[7] is not None:
    return found[7], "$"
  return found[1], (found[2] + (found[3] or "")).replace("{", "").replace("}", "")


def _group(text: str) -> tuple[str, list[str]] | None:
  opening, closing = text[:1], text[-1:]
  if text.startswith(r"\{") and text.endswith(r"\}"):
    return "{}", _split(text[2:-2])
  if r"\cup" in text:
    return "cup", text.split(r"\cup")
  if text.startswith(r"\begin") and text.endswith("matrix}"):
    rows = re.sub(r"\\(?:begin|end)\{\w+\}", "", text).split(r"\\")
    return f"matrix{len(rows)}", [cell for row in rows for cell in row.split("&")]
  if ":" in text:
    return ":", text.split(":")
  inner = _split(text[1:-1]) if opening in "([" and closing in ")]" and opening else []
  if len(inner) > 1 and text.count(opening) == text.count(closing) == 1:
    return opening + closing, inner
  pieces = _split(text)
  return ("", pieces) if len(pieces) > 1 else None


def _split(text: str) -> list[str]:
  pieces, depth = [""], 0
  for character in re.sub(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|;", ",", text):
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      pieces.append("")
    else:
      pieces[-1] += character
  return [piece.strip() for piece in pieces]


def _refuted_groups(one, other) -> bool | None:
  brackets = {one[0], other[0]}
  if len(brackets) == 2 and brackets not in ({"", "{}"}, {"", "()"}):
    return True
  if len(one[1]) != len(other[1]) and "{}" not in brackets:
    return True
  if brackets & {"{}", "", "cup"} and brackets != {"", "()"}:
    matched = [any(refuted(a, b) is not True for b in other[1]) for a in one[1]]
    matched += [any(refuted(a, b) is not True for a in one[1]) for b in other[1]]
    return not all(matched)
  return any(refuted(a, b) for a, b in zip(one[1], other[1]))


def _sides(text: str) -> list[str] | None:
  pieces = re.split(
    r"\s*(\\leq?(?![a-z])|\\geq?(?![a-z])|\\neq?(?![a-z])|\\in(?![a-z])|=|<|>)\s*", text
  )
  return pieces if len(pieces) >= 3 else None


def _refuted_relations(one: list[str], other: list[str]) -> bool | None:
  if len(one) != len(other):
    return True
  if len(one) > 3:
    return any(
      refuted(a, b) if index % 2 == 0 else a != b for index, (a, b) in enumerate(zip(one, other))
    )
  residuals = [_values(f"({sides[0]})-({sides[2]})") for sides in (one, other)]
  if residuals[0] is None or residuals[1] is None:
    return None
  if any(abs(value) < _CLOSE for residual in residuals for value in residual):
    return True
  ratios = [a / b for a, b in zip(*residuals)]
  if len(set(_symbols(one[0]) + _symbols(one[2]))) == 0 or any(
    abs(ratio - ratios[0]) > _CLOSE * abs(ratio) for ratio in ratios
  ):
    return True
  strictness = [sides[1].rstrip("q") in ("<", ">") for sides in (one, other)]
  downwards = [sides[1] in ("<", r"\le", r"\leq") for sides in (one, other)]
  if one[1] == "=" or other[1] == "=":
    return one[1] != other[1]
  return strictness[0] != strictness[1] or (downwards[0] == downwards[1]) != (ratios[0].real > 0)


def _symbols(text: str) -> list[str]:
  return re.findall(r"(?<![\\A-Za-z])[A-Za-z]|\\(?:theta|alpha|beta)", text)


def _values(text: str) -> list | None:
  """Values at four random points, of the symbols by their names."""
  import sympy
  from latex2sympy2_extended import latex2sympy
  from latex2sympy2_extended.latex2sympy2 import ConversionConfig

  try:
    found = latex2sympy(
      text.replace("%", ""), conversion_config=ConversionConfig(lowercase_symbols=False)
    )
    if not isinstance(found, sympy.Expr):
      return None
    symbols = sorted(found.free_symbols, key=str)
    function = sympy.lambdify(symbols, found.doit(), "mpmath")
    points = []
    for index in range(4):
      drawn = [
        mpmath.mpf(random.Random(f"{symbol} {index}").uniform(0.3, 3.0)) for symbol in symbols
      ]
      points.append(mpmath.mpmathify(function(*drawn)))
    return points if all(mpmath.isfinite(point) for point in points) else None
  except Exception:
    return None


# Mutants: (class, mutant) of a gold.


def _swapped(text, random_, pattern, new):
  """One random match replaced."""
  matches = list(re.finditer(pattern, text))
  if not matches:
    return None
  match = random_.choice(matches)
  return text[: match.start()] + (new(match) if callable(new) else new) + text[match.end() :]


def _other_digit(random_):
  return lambda match: str((int(match[0]) + random_.randint(1, 9)) % 10)


def _other_letter(random_):
  return lambda match: random_.choice([letter for letter in "xyzabkmnt" if letter != match[0]])


_VARIABLE = r"(?<![\\A-Za-z{])[a-z](?![A-Za-z}])"


def _shuffled(text, random_):
  """Two parts of a group changed over."""
  body = re.fullmatch(r"(\\left)?([(\[])(.*?)(\\right)?([)\]])", text)
  pieces = _split(body[3]) if body else []
  if len(pieces) < 2 or pieces[0] == pieces[1]:
    return None
  pieces[0], pieces[1] = pieces[1], pieces[0]
  return body[2] + ", ".join(pieces) + body[5]


def _rebracketed(text, random_):
  body = re.fullmatch(r"(\\left)?([(\[])(.*?)(\\right)?([)\]])", text)
  if body is None or len(_split(body[3])) < 2:
    return None
  left, right = {"(": ("[", body[5]), "[": ("(", body[5])}[body[2]]
  return random_.choice([left + body[3] + right, r"\{" + body[3] + r"\}"])


_UNIT = re.compile(r"\\(?:text|mbox)\{ *([a-z]+)\}$")
MUTATIONS = {
  "sign": lambda t, r: _swapped(
    t, r, r"(?<=[\w}) ])\s*[-+]\s*(?=[\w\\(])", lambda m: "-" if "+" in m[0] else "+"
  ),
  "negated": lambda t, r: (
    t[1:]
    if t.startswith("-")
    else "-" + t
    if re.match(r"[\d\\a-z]", t) and "," not in t and "=" not in t
    else None
  ),
  "digit": lambda t, r: _swapped(t, r, r"(?<!\^)\d", _other_digit(r)),
  "digit dropped": lambda t, r: _swapped(t, r, r"(?<=\d)\d", ""),
  "digit added": lambda t, r: _swapped(t, r, r"(?<=\d)(?=[^\d]|$)", lambda m: str(r.randint(1, 9))),
  "exponent": lambda t, r: _swapped(
    t, r, r"\^\{?\d\}?", lambda m: f"^{{{int(re.sub(r'[^0-9]', '', m[0])) + r.randint(1, 3)}}}"
  ),
  "exponent dropped": lambda t, r: _swapped(t, r, r"\^\{?\d\}?", ""),
  "exponent added": lambda t, r: _swapped(
    t, r, _VARIABLE + r"(?!\^)|(?<=\\pi)", lambda m: m[0] + "^2"
  ),
  "unit's power": lambda t, r: t + "^" + str(r.randint(2, 4)) if _UNIT.search(t) else None,
  "unit": lambda t, r: _UNIT.sub(lambda m: r"\text{ kg}", t) if _UNIT.search(t) else None,
  "scale word": lambda t, r: (
    t + r.choice([r"\text{ million}", " thousand", r"\text{ dozen}", " hundred", "e3"])
    if re.fullmatch(r"-?[\d.]*[1-9]\d*", t)
    else None
  ),
  "word": lambda t, r: (
    t
    + r.choice(
      [
        " less than x",
        " tenths",
        " choose two",
        " not",
        " xy",
        " sec x",
        " or 7",
        r" \pi",
        "!",
        " squared",
        " times 2",
        "x",
        r"\% of 3",
        " mod 3",
      ]
    )
  ),
  "scale": lambda t, r: _swapped(
    t,
    r,
    r"\d+(?:\.\d+)?",
    lambda m: r.choice([m[0] + "0", m[0] + "00", "0.0" + m[0].replace(".", "")]),
  ),
  "name": lambda t, r: _swapped(t, r, _VARIABLE, _other_letter(r)),
  "capital": lambda t, r: (
    _swapped(t, r, _VARIABLE, lambda m: m[0].upper() if m[0] not in "ei" else "Z")
    if "\\text" not in t
    else None
  ),
  "pi": lambda t, r: _swapped(t, r, r"\\pi(?![a-z])", r.choice(["", "3.14", r"\pi^2"])),
  "root": lambda t, r: _swapped(t, r, r"\\sqrt(?=\{)", r.choice(["", r"\sqrt[3]", r"2\sqrt"])),
  "inverted": lambda t, r: _swapped(
    t, r, r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: rf"\frac{{{m[2]}}}{{{m[1]}}}"
  ),
  "function": lambda t, r: _swapped(
    t,
    r,
    r"\\(?:sin|cos|tan)",
    lambda m: {r"\sin": r"\cos", r"\cos": r"\tan", r"\tan": r"\cot"}[m[0]],
  ),
  "order": _shuffled,
  "brackets": _rebracketed,
  "brackets dropped": lambda t, r: (
    t.replace("(", "").replace(")", "") if re.search(r"\w\(|\)\w", t) and "\\" not in t else None
  ),
  "broken box": lambda t, r: t + r.choice(["} , 5", "}", " }{ 2", r"} \boxed{3"]),
  "item dropped": lambda t, r: (
    ",".join(_split(t)[1:]) if re.match(r"[\d\\-]", t) and len(_split(t)) > 1 else None
  ),
  "item added": lambda t, r: f"{t}, {r.randint(50, 99)}",
  "relation": lambda t, r: _swapped(
    t,
    r,
    r"\\leq?(?![a-z])|\\geq?(?![a-z])|<|>|=",
    lambda m: r.choice([s for s in ("<", ">", r"\le", "=") if s != m[0].rstrip("q")]),
  ),
  "infinity": lambda t, r: _swapped(
    t, r, r"-?\\infty", lambda m: r"\infty" if "-" in m[0] else r"-\infty"
  ),
  "nothing said": lambda t, r: "1=2" if "=" in t else None,
  "base": lambda t, r: _swapped(t, r, r"_\{?\d+\}?", r.choice(["", "_3"])),
  "percent": lambda t, r: rf"{t}00\%" if re.fullmatch(r"0?\.?\d", t) else None,
  "unevaluated": lambda t, r: (
    f"{int(t) - (k := r.randint(1, 9))}+{k}" if re.fullmatch(r"\d{1,6}", t) else None
  ),
}


def own_golds(number: int, random_) -> list[str]:
  """Equations, inequalities, assignments, units, functions and tuples with random coefficients."""
  a, b, c = (lambda: random_.randint(2, 19) for _ in range(3))
  makers = (
    lambda: f"{a()}x^2+{b()}y^2={c()}",
    lambda: f"y={a()}x-{b()}",
    lambda: f"x={a()}, y={b() + 20}",
    lambda: f"x^2+{a()}=0",
    lambda: f"{a()}<x\\le {b() + 20}",
    lambda: f"x\\ge {a()}",
    lambda: rf"{a()}\text{{ cm}}",
    lambda: rf"{a()}\text{{ m}}^2",
    lambda: rf"\frac{{{a()}}}{{{b()}}}\text{{ miles}}",
    lambda: rf"\sin^2 {a()}x+\cos {b()}",
    lambda: f"({a()},{b() + 20},{c()})",
    lambda: rf"[{a()},{b() + 20})",
    lambda: rf"\frac{{{a()}x+{b()}}}{{x-{c()}}}",
    lambda: rf"{a()}\sqrt{{{b()}}}+{c()}",
    lambda: f"f(x)={a()}x^2-{b()}",
    lambda: rf"{a()}\%",
    lambda: rf"\${a()}.50",
    lambda: rf"e^{{{a()}x}}",
    lambda: f"x={a()}",
    lambda: rf"{a()}+{b()}i",
    lambda: f"{a()}_{{{b() + 10}}}",
    lambda: f"n(n+{a()})",
    lambda: rf"\ln {a()}+x",
    lambda: rf"{a()}^\circ",
    lambda: f"{a()}:{b() + 20}",
  )
  return [random_.choice(makers)() for _ in range(number)]


def golds(shared_data, random_) -> list[str]:
  math = [
    row["answer"]
    for split in ("train", "test")
    for row in files.read_jsonl(shared_data / f"math/{split}.jsonl")
  ]
  gsm8k = [
    extract.extract(row["answer"], "hash")
    for row in files.read_jsonl(shared_data / "gsm8k/test.jsonl")
  ]
  # Plain numbers are most of MATH too; what is more than a number has more ways to be nearly the same.
  formulas = sorted({gold for gold in math if gold.strip() and not gold.isdigit()})
  return (
    random_.sample(formulas, 1_400)
    + random_.sample(sorted(set(gsm8k)), 200)
    + own_golds(500, random_)
  )


def mutants(all_golds, random_) -> list[tuple[str, str, str]]:
  """(class, gold, mutant): up to three a gold, classes that fit few golds first."""
  found, counts = [], collections.Counter()
  for gold in all_golds:
    ways = list(MUTATIONS)
    random_.shuffle(ways)
    ways.sort(key=lambda name: counts[name] // 100)
    made = 0
    for name in ways:
      mutant = MUTATIONS[name](gold, random_)
      if mutant is None or re.sub(r"\s", "", mutant) == re.sub(r"\s", "", gold):
        continue
      found.append((name, gold, mutant))
      counts[name] += 1
      made += 1
      if made == 3:
        break
  return found


def _is_refused_by_policy(name: str) -> bool:
  return name in ("unevaluated", "broken box", "nothing said", "unit", "scale word", "base")


# Other spellings of a gold.


def _commuted(text):
  """a + b as b + a."""
  pieces = re.split(r" ?\+ ?", text)
  return (
    f"{pieces[1]} + {pieces[0]}"
    if len(pieces) == 2
    and not re.search(r"[,=<>()\[{|]|\\text|\\le|\\ge|\\%|\\circ|-.*\+|^-|_", text)
    else None
  )


def _spaced(text):
  return re.sub(r"(?<=[+=(-])|(?=[+=)-])", " ", text) if "\\begin" not in text else None


def _reordered(text):
  pieces = _split(text)
  return (
    ", ".join(reversed(pieces))
    if len(pieces) > 1 and not re.search(r"[()\[\]=]|\\text|\d,(?:\\!)?\d{3}(?!\d)", text)
    else None
  )


def _grouped(text):
  return f"{int(text):,}" if re.fullmatch(r"[1-9]\d{3,}", text) else None


SPELLINGS = {
  "dfrac": lambda t: t.replace(r"\frac", r"\dfrac") if r"\frac" in t else None,
  "short fraction": lambda t: re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", t),
  "slash": lambda t: re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", t),
  "math": lambda t: f"${t}$",
  "display": lambda t: rf"\[ {t} \]",
  "full stop": lambda t: t.rstrip(".,; ") + ".",
  "spaces": _spaced,
  "sized brackets": lambda t: (
    re.sub(r"(?<!left)\(", r"\\left(", re.sub(r"(?<!right)\)", r"\\right)", t))
    if "(" in t and "\\text" not in t
    else None
  ),
  "named": lambda t: (
    f"z = {t}" if re.fullmatch(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{\d+\}", t) else None
  ),
  "unit in the answer": lambda t: (
    t + r"\text{ cm}" if re.fullmatch(r"[\d.]+|\d*\\sqrt\{\d+\}|\d*\\pi", t) else None
  ),
  "things in the answer": lambda t: t + " apples" if re.fullmatch(r"\d+", t) else None,
  "unit in the gold": lambda t: (
    re.sub(r"\s*\\(?:text|mbox)\{[a-z ]+\}(\^\d)?$|\^\{?\\circ\}?$|\\%$|^\\\$", "", t)
    if re.match(r"[\\\d$]", t) and "cos" not in t
    else None
  ),
  "thousands": _grouped,
  "sign of currency": lambda t: rf"\${t}" if re.fullmatch(r"\d+(\.\d+)?", t) else None,
  "degrees": lambda t: rf"{t}^{{\circ}}" if re.fullmatch(r"\d{1,3}", t) else None,
  "percent": lambda t: rf"{t}\%" if re.fullmatch(r"\d{1,2}", t) and t != "0" else None,
  "leading zero": lambda t: re.sub(r"^\.(?=\d)", "0.", t),
  "minus": lambda t: t.replace("-", "\N{MINUS SIGN}"),
  "decimal": lambda t: {r"\frac{1}{2}": "0.5", r"\frac{3}{4}": ".75", r"\frac{1}{5}": "0.2"}.get(t),
  "commuted": _commuted,
  "reordered": _reordered,
  "times": lambda t: (
    re.sub(r"(?<=\d)(?=\\sqrt|\\pi)", r" \\cdot ", t) if "\\frac" not in t else None
  ),
  "semicolons": lambda t: t.replace(", ", "; ") if re.fullmatch(r"[\d, -]+", t) else None,
  "or": lambda t: t.replace(",", r" \text{ or } ") if re.fullmatch(r"-?\d+, -?\d+", t) else None,
  "dollars": lambda t: t.replace(r"\$", "") + " dollars" if t.startswith(r"\$") else None,
  "ASCII root": lambda t: re.sub(r"\\sqrt\{(\d+)\}", r"sqrt(\1)", t),
  "ASCII pi": lambda t: re.sub(r"\\pi(?![a-z])", " pi ", t),
  "braced exponent": lambda t: re.sub(r"\^(\d)", r"^{\1}", t),
}


@pytest.mark.slow
def test_other_spellings_of_golds_are_accepted(shared_data):
  cases = []
  for gold in golds(shared_data, random.Random(7)):
    for name, respelled in SPELLINGS.items():
      answer = respelled(gold)
      if answer and answer != gold:
        cases.append((name, gold, answer))
  assert len(cases) > 10_000
  with pool.Pool(STRICT) as judge:
    verdicts = judge.compare_many([(gold, answer) for _, gold, answer in cases])
  refused = [(case, verdict.value) for case, verdict in zip(cases, verdicts) if not verdict.correct]
  assert refused == []


@pytest.mark.slow
def test_no_near_miss_is_accepted_that_values_refute(shared_data):
  random_ = random.Random(13)
  cases = mutants(golds(shared_data, random_), random_)
  assert len(cases) >= 5_000
  assert len({name for name, _, _ in cases}) >= 28
  with pool.Pool(STRICT) as judge:
    verdicts = judge.compare_many([(gold, mutant) for _, gold, mutant in cases])
  accepted = [case for case, verdict in zip(cases, verdicts) if verdict.correct]
  false = [
    case
    for case in accepted
    if _is_refused_by_policy(case[0]) or refuted(case[1], case[2]) is not False
  ]
  assert false == []
