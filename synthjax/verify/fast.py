"""Equality of answers by their forms: numbers exactly, formulas by value, the rest by parts.

`compare` returns None where it is not certain; the symbolic comparison decides then, one pair of
parts at a time.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from synthjax.verify import expressions, forms, numeric
from synthjax.verify.forms import (
  Assigned,
  Form,
  Formula,
  Group,
  Measured,
  Number,
  Phrase,
  Relation,
  Word,
)
from synthjax.verify.policy import STRICT, Policy
from synthjax.verify.spelling import clean, is_balanced, squeeze

Leaf = Callable[[str, str], bool | None]  # decides what this module leaves open

_MOST_ITEMS = 40  # of a group whose order does not count
_SIX_DIGITS = Fraction(1, 10**5)
_SUBSCRIPT = re.compile(r"(?<=[0-9A-F])\s*_\s*\{?\s*\d+\s*\}?")
_ELLIPSIS = re.compile(r"\\[lcdv]?dots(?:c|b|m|o)?(?![A-Za-z])|\.\.\.|\N{HORIZONTAL ELLIPSIS}")
# 10+John's age: a formula in which words stand for quantities is not a number.
_QUANTITY = r"(?!sqrt|sin|cos|tan|log|exp)[A-Z]?[a-z]{3,}"
_FORMULA_OF_WORDS = re.compile(
  rf"[\d)]\s*[-+*/]\s*{_QUANTITY}|(?<![\\A-Za-z]){_QUANTITY}\s*[+*/]\s*[\d(]"
)
# Words after a number that make it another one.
_MORE_THAN_A_UNIT = re.compile(
  r"\b(?:pi|sqrt|sin|cos|tan|log|ln|\w*ths?|halfs?|halves|thirds?|quarters?|hundreds?|thousands?|"
  r"millions?|billions?|trillions?|dozens?|pairs?|and|or|to|mod|squared|cubed|factorial|times|plus|"
  r"minus|over|percent|choose|less|more|than|not|by|divided|double|twice|triple)\b|[-+*/^!]",
  re.IGNORECASE,
)
_COUNTED = re.compile(r"(\d[\d,.]*)\s*\\word\s+[A-Za-z ]+")
_WITHIN = re.compile(r"\d[\d,]*(?:\.\d+)?")


def compare(
  gold: str, prediction: str, policy: Policy = STRICT, leaf: Leaf | None = None
) -> bool | None:
  """True or False where that is certain, else None.

  Args:
    gold: the known answer.
    prediction: the extracted one.
    policy: what counts as equal.
    leaf: asked about the parts that are left open; None leaves them open.
  """
  return _same(clean(gold), clean(prediction), policy, leaf)


def key(answer: str):
  """A hashable value that equal answers mostly share: what a vote counts."""
  return _key(clean(answer))


def _key(text: str):
  found = forms.form(text)
  match found:
    case Number():
      return found.value
    case Measured() | Assigned():
      return _key(found.body)
    case Group():
      keys = [_key(item) for item in found.items]
      return (
        found.brackets,
        *(sorted(keys, key=repr) if found.brackets in ("", "{}", "union") else keys),
      )
    case Word():
      return found.text
    case Formula():
      return numeric.fingerprint(found.expression) or squeeze(text)
  return squeeze(text)


def _same(gold: str, found: str, policy: Policy, leaf: Leaf | None) -> bool | None:
  if squeeze(gold) == squeeze(found):
    return True if squeeze(gold) else None
  if not (is_balanced(gold) and is_balanced(found)):
    return leaf(gold, found) if leaf is not None else None
  for name, pattern in (("ellipsis", _ELLIPSIS), ("subscript", _SUBSCRIPT)):
    if pattern.search(gold) or pattern.search(found):
      if getattr(policy, name):
        return _compact(gold) == _compact(found)
      gold, found = (re.sub(r",\s*$", "", pattern.sub("", text).strip()) for text in (gold, found))
  one, other = forms.form(gold), forms.form(found)
  verdict = _of_forms(one, other, policy, leaf)
  if verdict is None and leaf is not None and _is_for_leaf(one, other):
    return leaf(gold, found)
  return verdict


def _is_for_leaf(one: Form | None, other: Form | None) -> bool:
  """Two groups were asked about by their parts; a union and an interval are judged as sets."""
  if isinstance(one, Group) and isinstance(other, Group):
    return "union" in (one.brackets, other.brackets)
  return True


def _compact(text: str) -> str:
  return re.sub(r"\s|\\word|[{}]", "", text)


def _of_forms(
  gold: Form | None, found: Form | None, policy: Policy, leaf: Leaf | None
) -> bool | None:
  kinds = (type(gold), type(found))
  if Relation in kinds or kinds == (Assigned, Assigned):
    return _same_relations(gold, found, policy, leaf)
  if isinstance(gold, Assigned):
    return _same_text(gold.body, found, policy, leaf, gold_first=True)
  if isinstance(found, Assigned):
    return _same_text(found.body, gold, policy, leaf, gold_first=False)
  if gold is None or found is None:
    return None
  if Measured in kinds:
    return _same_measured(gold, found, policy, leaf)
  if Phrase in kinds:
    return _same_phrases(gold, found)
  if isinstance(gold, Group) and isinstance(found, Group):
    return _same_groups(gold, found, policy, leaf)
  if Group in kinds:
    return _same_group_and_single(gold, found, policy, leaf)
  if isinstance(gold, Number) and isinstance(found, Number):
    return _same_numbers(gold, found, policy)
  if isinstance(gold, Word) and isinstance(found, Word):
    return _same_words(gold.text, found.text)
  return _same_values(gold, found, policy)


def _same_text(
  text: str, other: Form | None, policy: Policy, leaf: Leaf | None, gold_first: bool
) -> bool | None:
  """A part of one answer against the form of the other."""
  part = forms.form(text)
  if gold_first:
    return _of_forms(part, other, policy, leaf)
  return _of_forms(other, part, policy, leaf)


# Numbers, words and formulas.


def _same_numbers(gold: Number, found: Number, policy: Policy) -> bool:
  if gold.value == found.value:
    return True
  if not policy.rounding:
    return gold.places + found.places > -2 and round(gold.value, 6) == round(found.value, 6)
  # A gold with fewer places than the prediction does not stand for it: the prediction is another number.
  if gold.places >= 0 and found.places > gold.places:
    return False
  return _stands_for(gold, found.value) or _stands_for(found, gold.value)


def _stands_for(decimal: Number, value: Fraction) -> bool:
  """Whether a decimal of six or more places is a value, rounded or cut at its last place."""
  if decimal.places < 6 or abs(decimal.value) * 10**decimal.places < 10**5:
    return False
  return abs(decimal.value - value) < Fraction(1, 10**decimal.places)


def _same_values(gold: Form, found: Form, policy: Policy) -> bool | None:
  """Numbers, formulas and single letters by value at random points."""
  one, other = _expression(gold), _expression(found)
  if one is None or other is None:
    return _same_word_and_formula(gold, found)
  same = numeric.same(one, other)
  if same and isinstance(gold, Number) and policy.unevaluated:
    return False
  if same is False:
    for decimal, exact in ((gold, other), (found, one)):
      if isinstance(decimal, Number) and _rounds(decimal, exact, policy):
        return True
  return same


def _same_word_and_formula(gold: Form, found: Form) -> bool | None:
  """No, but for letters that may be a product of the variables of the formula."""
  word, formula = (gold, found) if isinstance(gold, Word) else (found, gold)
  if (
    isinstance(word, Word)
    and isinstance(formula, Formula)
    and set(word.text) == formula.expression.names
  ):
    return None
  return False


def _rounds(decimal: Number, exact: expressions.Expression, policy: Policy) -> bool:
  if not policy.rounding:
    return decimal.places >= 0 and numeric.close(decimal.value, exact, Fraction(1, 10**6)) is True
  if decimal.places < 6 or abs(decimal.value) * 10**decimal.places < 10**5:
    return False
  return numeric.close(decimal.value, exact, Fraction(1, 10**decimal.places)) is True


def _expression(form: Form) -> expressions.Expression | None:
  if isinstance(form, Formula):
    return form.expression
  if isinstance(form, Number):
    return numeric.constant(form.value)
  if isinstance(form, Word) and len(form.text) == 1:
    return expressions.parse(form.text)
  return None


def _same_words(gold: str, found: str) -> bool | None:
  if gold == found:
    return True
  if len(gold) == len(found) == 1:
    return False
  return (
    False
    if sorted(gold.lower().replace(" ", "")) != sorted(found.lower().replace(" ", ""))
    else None
  )


def _lowered(text: str) -> str:
  return re.sub(r"[\s.]|\\word", "", text).lower()


def _same_phrases(gold: Form, found: Form) -> bool | None:
  if isinstance(gold, Phrase) and isinstance(found, Phrase):
    return True if _lowered(gold.text) == _lowered(found.text) else None
  phrase, other = (gold, found) if isinstance(gold, Phrase) else (found, gold)
  if not isinstance(phrase, Phrase) or not isinstance(other, Number):
    return None
  if _FORMULA_OF_WORDS.search(phrase.text) and phrase is found:
    return False
  # 25 zebras are not 24 of anything, whatever zebras are.
  text = phrase.text.replace(r"\word", " ")
  if _MORE_THAN_A_UNIT.search(text):
    return None
  counted = _COUNTED.fullmatch(phrase.text)
  if phrase is gold and counted is not None:
    return forms.form(counted[1]) == other  # a gold knows its own unit
  numbers = [forms.form(number.rstrip(",")) for number in _WITHIN.findall(text)]
  return (
    None
    if other.value in [number.value for number in numbers if isinstance(number, Number)]
    else False
  )


def _same_measured(gold: Form, found: Form, policy: Policy, leaf: Leaf | None) -> bool | None:
  gold_unit = gold.unit if isinstance(gold, Measured) else ""
  found_unit = found.unit if isinstance(found, Measured) else ""
  if policy.units and gold_unit and found_unit and gold_unit != found_unit:
    return False
  if isinstance(gold, Phrase) or isinstance(found, Phrase):
    return False if isinstance(gold, Phrase) and _COUNTED.fullmatch(gold.text) else None
  one = forms.form(gold.body) if isinstance(gold, Measured) else gold
  other = forms.form(found.body) if isinstance(found, Measured) else found
  if (
    isinstance(one, Number)
    and isinstance(other, Number)
    and (gold_unit == "percent") != (found_unit == "percent")
  ):
    share, plain = (one, other) if gold_unit == "percent" else (other, one)
    if not policy.percent:
      return share.value in (plain.value, plain.value * 100)
    if 0 < abs(share.value) < 1:
      return False  # 0.5 % is hardly meant for a half
  return _of_forms(one, other, policy, leaf)


# Groups.

_IN_ANY_ORDER = ("{}", "", "union")
_INTERVALS = {"()", "[]", "(]", "[)"}


def _same_groups(gold: Group, found: Group, policy: Policy, leaf: Leaf | None) -> bool | None:
  kinds = {gold.brackets, found.brackets}
  if len(kinds) == 1:
    if gold.brackets in _IN_ANY_ORDER and not _by_position(gold, found):
      return _in_any_order(gold, found, policy, leaf)
    return _in_order(gold.items, found.items, policy, leaf)
  if kinds == {"", "{}"}:
    return _in_any_order(gold, found, policy, leaf)
  if kinds == {"", "()"}:
    return _in_order(gold.items, found.items, policy, leaf)
  if "{}" in kinds and "()" in kinds:
    return False if policy.tuples else _in_any_order(gold, found, policy, leaf)
  if kinds <= _INTERVALS:
    return False if policy.intervals else _in_order(gold.items, found.items, policy, leaf)
  if kinds == {"", "union"}:
    return _in_any_order(_as_union(gold), _as_union(found), policy, leaf)
  # [0,1] and [1,2] together are [0,2].
  return None if "union" in kinds and kinds <= {"union", *_INTERVALS} else False


def _as_union(group: Group) -> Group:
  """A list of inequalities, x < 1 or x > 2, as the intervals that they are."""
  intervals = []
  for item in group.items:
    relation = forms.form(item)
    interval = _interval(relation) if isinstance(relation, Relation) else None
    intervals.append(interval or item)
  return Group("union", tuple(intervals))


def _by_position(gold: Group, found: Group) -> bool:
  """Whether one list has two or more names and the other has none: x=3, y=4 and 3, 4."""
  of_names = []
  for group in (gold, found):
    read = [forms.form(item) for item in group.items]
    of_names.append({form.name for form in read if isinstance(form, Assigned)})
  return max(len(names) for names in of_names) > 1 and len(of_names[0]) != len(of_names[1])


def _in_order(
  gold: Sequence[str], found: Sequence[str], policy: Policy, leaf: Leaf | None
) -> bool | None:
  if len(gold) != len(found):
    return False
  verdicts = []
  for one, other in zip(gold, found):
    verdicts.append(_same(one, other, policy, leaf))
    if verdicts[-1] is False:
      return False
  return None if None in verdicts else True


def _in_any_order(gold: Group, found: Group, policy: Policy, leaf: Leaf | None) -> bool | None:
  """Matched greedily, equality being transitive; a pair that is open leaves the whole open."""
  ones, others = list(gold.items), list(found.items)
  if "{}" in (gold.brackets, found.brackets):
    ones, others = _distinct(ones, policy), _distinct(others, policy)
  if max(len(ones), len(others)) > _MOST_ITEMS:
    return None
  if len(ones) != len(others):
    return False
  unknown = False
  for one in ones:
    verdicts = [_same(one, other, policy, leaf) for other in others]
    if True in verdicts:
      others.pop(verdicts.index(True))
    elif None in verdicts:
      unknown = True
    else:
      return False
  return None if unknown else True


def _distinct(items: list[str], policy: Policy) -> list[str]:
  kept: list[str] = []
  for item in items:
    if not any(_same(item, other, policy, None) for other in kept):
      kept.append(item)
  return kept


def _same_group_and_single(
  gold: Form, found: Form, policy: Policy, leaf: Leaf | None
) -> bool | None:
  """A set of one may be its element; any other group is no single thing."""
  group, single = (gold, found) if isinstance(gold, Group) else (found, gold)
  assert isinstance(group, Group)
  if group.brackets == "{}" and len(group.items) == 1:
    return _same_text(group.items[0], single, policy, leaf, gold_first=group is gold)
  return None if isinstance(single, Phrase) else False


# Equations and inequalities.

_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def _same_relations(
  gold: Form | None, found: Form | None, policy: Policy, leaf: Leaf | None
) -> bool | None:
  if isinstance(gold, Assigned) and isinstance(found, Assigned):
    if gold.name == found.name or not policy.names:
      return _same(gold.body, found.body, policy, leaf)
    return _same_equations(_equation(gold), _equation(found))
  one, other = _opened(gold), _opened(found)
  if isinstance(one, Relation) and isinstance(other, Relation):
    if isinstance(gold, Assigned) and policy.equation and not _has_variables(gold.body):
      return False  # 2x = 10 for x = 5 is still to be solved
    return (
      _same_equations(one, other)
      if set(one.signs) == set(other.signs) == {"="}
      else _same_inequalities(one, other, policy, leaf)
    )
  relation, single = (one, other) if isinstance(one, Relation) else (other, one)
  assert isinstance(relation, Relation)
  if isinstance(single, Group | Measured) or single is None:
    return _interval_and(relation, single, policy, leaf, gold_first=relation is one)
  if policy.equation or relation is one or set(relation.signs) != {"="}:
    return False
  return _same_text(relation.sides[-1], single, policy, leaf, gold_first=False)


def _opened(form: Form | None) -> Form | None:
  return _equation(form) if isinstance(form, Assigned) else form


def _equation(assigned: Assigned) -> Relation:
  return Relation((assigned.name, assigned.body), ("=",))


def _has_variables(text: str) -> bool:
  expression = expressions.parse(text)
  return expression is None or bool(expression.names - {"pi", "e", "i"})


def _same_equations(gold: Relation, found: Relation) -> bool | None:
  """Equal are equations whose residuals, left minus right, are the same up to a constant factor."""
  one, other = _residual(gold), _residual(found)
  if one is None or other is None:
    return None
  if (
    not one.names - {"pi"} or not other.names - {"pi"} or one.names - {"pi"} != other.names - {"pi"}
  ):
    return False  # an equation without variables says nothing
  ratio = numeric.proportional(one, other)
  return True if ratio else None


def _residual(relation: Relation) -> expressions.Expression | None:
  if len(relation.sides) != 2:
    return None
  left, right = (expressions.parse(side) for side in relation.sides)
  return None if left is None or right is None else numeric.difference(left, right)


def _same_inequalities(
  gold: Relation, found: Relation, policy: Policy, leaf: Leaf | None
) -> bool | None:
  if len(gold.signs) != len(found.signs):
    return None
  for candidate in (found, _reversed(found)):
    if candidate.signs == gold.signs and _in_order(gold.sides, candidate.sides, policy, leaf):
      return True
  if len(gold.signs) > 1:
    return None
  one, other = _residual(gold), _residual(found)
  if one is None or other is None:
    return None
  ratio = numeric.proportional(one, other)
  if ratio is None:
    return None
  signs = gold.signs[0], found.signs[0]
  if ratio == 0.0:
    return False
  return (
    signs[0] == signs[1] if ratio > 0 or signs[0] == r"\neq" else signs[0] == _FLIPPED.get(signs[1])
  )


def _reversed(relation: Relation) -> Relation:
  return Relation(
    relation.sides[::-1], tuple(_FLIPPED.get(sign, sign) for sign in relation.signs[::-1])
  )


def _interval_and(
  relation: Relation, other: Form | None, policy: Policy, leaf: Leaf | None, gold_first: bool
) -> bool | None:
  """An inequality of one symbol is an interval: 1 < x <= 2 is (1,2]."""
  interval = _interval(relation)
  if interval is None or not isinstance(other, Group):
    return False if isinstance(other, Group | Measured) and set(relation.signs) == {"="} else None
  if not policy.intervals and not gold_first:
    return False  # as math-verify has it
  return _same_text(interval, other, policy, leaf, gold_first)


_SYMBOL = re.compile(r"\\?[A-Za-z]+")


def _interval(relation: Relation) -> str | None:
  if relation.signs[0] in (">", r"\geq"):
    relation = _reversed(relation)
  if not set(relation.signs) <= {"<", r"\leq"}:
    return None
  sides, signs = relation.sides, relation.signs
  if len(sides) == 3 and _SYMBOL.fullmatch(sides[1]):
    opening, closing = signs
    low, high = sides[0], sides[2]
  elif len(sides) == 2 and _SYMBOL.fullmatch(sides[0]):
    opening, closing = "<", signs[0]
    low, high = r"-\infty", sides[1]
  elif len(sides) == 2 and _SYMBOL.fullmatch(sides[1]):
    opening, closing = signs[0], "<"
    low, high = sides[0], r"\infty"
  else:
    return None
  return ("(" if opening == "<" else "[") + f"{low},{high}" + (")" if closing == "<" else "]")
