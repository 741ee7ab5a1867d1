"""Equality of answers by their forms: numbers exactly, formulas by value, the rest by parts.

`compare` returns None where it is not certain; the symbolic comparison decides then, one pair of
parts at a time.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from synthjax.verify import expressions, forms, numeric, values
from synthjax.verify.forms import (
  Assigned,
  Form,
  Formula,
  Group,
  Phrase,
  Quantity,
  Relation,
  Word,
)
from synthjax.verify.numerals import Number
from synthjax.verify.policy import STRICT, EqualityPolicy
from synthjax.verify.spelling import clean, is_balanced, squeeze

Leaf = Callable[[str, str], bool | None]  # decides what this module leaves open

_IN_ANY_ORDER = ("{}", "", "union")  # brackets of groups whose order does not count
_MOST_ITEMS = 40  # of a group whose order does not count
_SUBSCRIPT = re.compile(r"(?<=[0-9A-F])\s*_\s*\{?\s*\d+\s*\}?")
_ELLIPSIS = re.compile(r"\\[lcdv]?dots(?:c|b|m|o)?(?![A-Za-z])|\.\.\.|\N{HORIZONTAL ELLIPSIS}")


class _Rules(NamedTuple):
  """What counts as equal, and what judges the parts that are left open."""

  policy: EqualityPolicy
  leaf: Leaf | None


def compare(
  gold: str, prediction: str, policy: EqualityPolicy = STRICT, leaf: Leaf | None = None
) -> bool | None:
  """True or False where that is certain, else None.

  Args:
    gold: the known answer.
    prediction: the extracted one.
    policy: what counts as equal.
    leaf: asked about the parts that are left open; None leaves them open.
  """
  return _same(clean(gold), clean(prediction), _Rules(policy, leaf))


def key(answer: str):
  """A hashable value that equal answers mostly share: what a vote counts."""
  return _key(clean(answer))


def _key(text: str):
  form = forms.form(text)
  match form:
    case Number():
      return form.value
    case Quantity() | Assigned():
      return _key(form.body)
    case Group():
      keys = [_key(item) for item in form.items]
      if form.brackets in _IN_ANY_ORDER:
        # By repr: keys are of several types.
        keys = sorted(keys, key=repr)
      return (form.brackets, *keys)
    case Word():
      return form.text
    case Formula():
      return numeric.fingerprint(form.expression) or squeeze(text)
  return squeeze(text)


def _same(gold: str, prediction: str, rules: _Rules) -> bool | None:
  if squeeze(gold) == squeeze(prediction):
    # Two empty answers say nothing.
    return bool(squeeze(gold)) or None
  if not (is_balanced(gold) and is_balanced(prediction)):
    return _ask(gold, prediction, rules)
  for name, pattern in (("ellipsis", _ELLIPSIS), ("subscript", _SUBSCRIPT)):
    if not (pattern.search(gold) or pattern.search(prediction)):
      continue
    if getattr(rules.policy, name):
      return _compact(gold) == _compact(prediction)
    gold = _without(pattern, gold)
    prediction = _without(pattern, prediction)
  return _of_forms(gold, prediction, forms.form(gold), forms.form(prediction), rules)


def _without(pattern: re.Pattern, text: str) -> str:
  """The text without the pattern, and without a comma that is left at its end."""
  return re.sub(r",\s*$", "", pattern.sub("", text).strip())


def _ask(gold: str, prediction: str, rules: _Rules) -> bool | None:
  """The word of what judges the open parts."""
  if rules.leaf is None:
    return None
  return rules.leaf(gold, prediction)


def _compact(text: str) -> str:
  return re.sub(r"\s|\\word|[{}]", "", text)


def _of_forms(
  gold: str, prediction: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  """Two answers by their forms; the order of the cases matters.

  A name or a unit is taken off before what it belongs to is compared.
  """
  if isinstance(one, Assigned) and isinstance(other, Assigned):
    if one.name == other.name or not rules.policy.names:
      return _same(one.body, other.body, rules)
    return _same_equations(gold, prediction, _opened(one), _opened(other), rules)
  if isinstance(one, Relation) or isinstance(other, Relation):
    return _same_relations(gold, prediction, one, other, rules)
  if isinstance(one, Assigned):
    return _same(one.body, prediction, rules)
  if isinstance(other, Assigned):
    return _same(gold, other.body, rules)
  if isinstance(one, Quantity) or isinstance(other, Quantity):
    return _same_measured(gold, prediction, one, other, rules)
  if isinstance(one, Group) and isinstance(other, Group):
    return _same_groups(gold, prediction, one, other, rules)
  if one is None or other is None:
    return _ask(gold, prediction, rules)
  if isinstance(one, Group):
    return _same_group_and_single(one, prediction, other, rules, gold_first=True)
  if isinstance(other, Group):
    return _same_group_and_single(other, gold, one, rules, gold_first=False)
  same = values.same(one, other, rules.policy)
  if same is None:
    return _ask(gold, prediction, rules)
  return same


class _Part(NamedTuple):
  """An answer without its unit."""

  body: str
  unit: str


def _without_unit(text: str, form: Form | None) -> _Part:
  if isinstance(form, Quantity):
    return _Part(form.body, form.unit)
  return _Part(text, "")


def _same_measured(
  gold: str, prediction: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  wanted = _without_unit(gold, one)
  given = _without_unit(prediction, other)
  if rules.policy.units and wanted.unit and given.unit and wanted.unit != given.unit:
    return False
  if values.is_counted(one):
    return False  # in another unit than the gold, which knows its own
  verdict = None
  if wanted.unit == "percent" and given.unit != "percent":
    verdict = _same_percent(wanted.body, given.body, rules.policy)
  elif given.unit == "percent" and wanted.unit != "percent":
    verdict = _same_percent(given.body, wanted.body, rules.policy)
  if verdict is not None:
    return verdict
  return _same(wanted.body, given.body, rules)


def _same_percent(with_sign: str, without_sign: str, policy: EqualityPolicy) -> bool | None:
  """Numbers of which one had a percent sign; None where the sign is no more than a unit."""
  share = forms.form(with_sign)
  plain = forms.form(without_sign)
  if not isinstance(share, Number) or not isinstance(plain, Number):
    return None
  if not policy.percent:
    return share.value in (plain.value, plain.value * 100)
  if 0 < abs(share.value) < 1:
    return False  # 0.5 % is hardly meant for a half
  return None


# Groups.

_INTERVALS = {"()", "[]", "(]", "[)"}


def _same_groups(
  gold: str, prediction: str, one: Group, other: Group, rules: _Rules
) -> bool | None:
  kinds = {one.brackets, other.brackets}
  if len(kinds) == 1 and one.brackets in _IN_ANY_ORDER and not _by_position(one, other):
    return _in_any_order(one, other, rules)
  if len(kinds) == 1 or kinds == {"", "()"}:
    return _in_order(one.items, other.items, rules)
  if kinds == {"", "{}"} or (kinds == {"{}", "()"} and not rules.policy.tuples):
    return _in_any_order(one, other, rules)
  if kinds <= _INTERVALS and not rules.policy.intervals:
    return _in_order(one.items, other.items, rules)
  if kinds == {"", "union"}:
    return _in_any_order(_as_union(one), _as_union(other), rules)
  if "union" in kinds and kinds <= {"union", *_INTERVALS}:
    return _ask(gold, prediction, rules)  # [0,1] and [1,2] together are [0,2]
  return False


def _as_union(group: Group) -> Group:
  """A list of inequalities of one symbol, x < 1 or x > 2, as the intervals that they are."""
  relations = [forms.form(item) for item in group.items]
  intervals = [_interval(form) for form in relations if isinstance(form, Relation)]
  symbols = {interval.symbol for interval in intervals if interval is not None}
  if len(symbols) != 1 or len(intervals) < len(group.items) or None in intervals:
    return group
  return Group("union", tuple(interval.text for interval in intervals if interval is not None))


def _by_position(gold: Group, prediction: Group) -> bool:
  """Whether one list has two or more names and the other has none: x=3, y=4 and 3, 4."""
  names = _names(gold)
  other_names = _names(prediction)
  return len(names) != len(other_names) and max(len(names), len(other_names)) > 1


def _names(group: Group) -> set[str]:
  """Names to which items of the group are assigned."""
  read = [forms.form(item) for item in group.items]
  return {form.name for form in read if isinstance(form, Assigned)}


def _in_order(gold: Sequence[str], prediction: Sequence[str], rules: _Rules) -> bool | None:
  if len(gold) != len(prediction):
    return False
  is_certain = True
  for one, other in zip(gold, prediction):
    verdict = _same(one, other, rules)
    if verdict is False:
      return False
    if verdict is None:
      is_certain = False
  return is_certain or None


def _in_any_order(gold: Group, prediction: Group, rules: _Rules) -> bool | None:
  """Matched greedily, equality being transitive; a pair that is open leaves the whole open."""
  ones = list(gold.items)
  others = list(prediction.items)
  if "{}" in (gold.brackets, prediction.brackets):
    ones = _distinct(ones, rules.policy)
    others = _distinct(others, rules.policy)
  if max(len(ones), len(others)) > _MOST_ITEMS:
    return None
  if len(ones) != len(others):
    return False
  is_certain = True
  for one in ones:
    verdicts = [_same(one, other, rules) for other in others]
    if True in verdicts:
      others.pop(verdicts.index(True))
    elif None in verdicts:
      is_certain = False
    else:
      return False
  return is_certain or None


def _distinct(items: list[str], policy: EqualityPolicy) -> list[str]:
  kept: list[str] = []
  for item in items:
    if not any(_same(item, other, _Rules(policy, None)) for other in kept):
      kept.append(item)
  return kept


def _same_group_and_single(
  group: Group, single: str, form: Form, rules: _Rules, gold_first: bool
) -> bool | None:
  """A set of one may be its element; any other group is no single thing."""
  if group.brackets == "{}" and len(group.items) == 1:
    item = group.items[0]
    if gold_first:
      return _same(item, single, rules)
    return _same(single, item, rules)
  if isinstance(form, Phrase):
    return None
  return False


# Equations and inequalities.

_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def _same_relations(
  gold: str, prediction: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  """At least one is a relation."""
  if one is None or other is None:
    return _ask(gold, prediction, rules)
  if isinstance(one, Assigned) and rules.policy.equation and not _has_variables(one.body):
    return False  # 2x = 10 for x = 5 is still to be solved
  left = _opened(one)
  right = _opened(other)
  if isinstance(left, Relation) and isinstance(right, Relation):
    if set(left.signs) == set(right.signs) == {"="}:
      return _same_equations(gold, prediction, left, right, rules)
    return _same_inequalities(gold, prediction, left, right, rules)
  if isinstance(left, Relation):
    return _same_relation_and_single(left, prediction, other, rules, gold_first=True)
  assert isinstance(right, Relation)
  return _same_relation_and_single(right, gold, one, rules, gold_first=False)


def _same_relation_and_single(
  relation: Relation, single: str, form: Form, rules: _Rules, gold_first: bool
) -> bool | None:
  """An inequality of one symbol is an interval, and an equation is no answer to anything else."""
  interval = _interval(relation)
  if interval is not None and isinstance(form, Group):
    if gold_first:
      return _same(interval.text, single, rules)
    if rules.policy.intervals:
      return _same(single, interval.text, rules)
    return False
  if gold_first or rules.policy.equation or set(relation.signs) != {"="}:
    return False
  return _same(single, relation.sides[-1], rules)


def _opened(form: Form | None) -> Form | None:
  if isinstance(form, Assigned):
    return Relation((form.name, form.body), ("=",))
  return form


def _has_variables(text: str) -> bool:
  expression = expressions.parse(text)
  return expression is None or bool(expression.names - {"pi", "e", "i"})


def _same_equations(
  gold: str, prediction: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  """Equal are equations whose residuals, left minus right, are the same up to a constant factor."""
  left, right = _residual(one), _residual(other)
  if left is None or right is None:
    return _ask(gold, prediction, rules)
  names = left.names - {"pi"}
  if not names or names != right.names - {"pi"}:
    return False  # an equation without variables says nothing
  if numeric.proportional(left, right):
    return True
  return _ask(gold, prediction, rules)


def _residual(relation: Form | None) -> expressions.Expression | None:
  if not isinstance(relation, Relation) or len(relation.sides) != 2:
    return None
  left = expressions.parse(relation.sides[0])
  right = expressions.parse(relation.sides[1])
  if left is None or right is None:
    return None
  return numeric.difference(left, right)


def _same_inequalities(
  gold: str, prediction: str, one: Relation, other: Relation, rules: _Rules
) -> bool | None:
  for candidate in (other, _reversed(other)):
    if candidate.signs == one.signs and _in_order(one.sides, candidate.sides, rules):
      return True
  left, right = _residual(one), _residual(other)
  if left is None or right is None:
    return _ask(gold, prediction, rules)
  factor = numeric.proportional(left, right)
  if factor is None:
    return _ask(gold, prediction, rules)
  sign, other_sign = one.signs[0], other.signs[0]
  if factor < 0 and sign != r"\neq":
    return sign == _FLIPPED.get(other_sign)
  return factor != 0.0 and sign == other_sign


def _reversed(relation: Relation) -> Relation:
  signs = tuple(_FLIPPED.get(sign, sign) for sign in relation.signs[::-1])
  return Relation(relation.sides[::-1], signs)


class _Interval(NamedTuple):
  symbol: str
  text: str


_OPENINGS = {"<": "(", r"\leq": "["}
_CLOSINGS = {"<": ")", r"\leq": "]"}
_SYMBOL = re.compile(r"\\?[A-Za-z]+")


def _interval(relation: Relation) -> _Interval | None:
  """1 < x <= 2 as (1,2], and x > 1 as (1,oo)."""
  if relation.signs[0] in (">", r"\geq"):
    relation = _reversed(relation)
  if not set(relation.signs) <= {"<", r"\leq"}:
    return None
  sides = relation.sides
  signs = relation.signs
  if len(sides) == 2 and _SYMBOL.fullmatch(sides[0]):
    sides = (r"-\infty", *sides)
    signs = ("<", *signs)
  elif len(sides) == 2:
    sides = (*sides, r"\infty")
    signs = (*signs, "<")
  if len(sides) != 3 or not _SYMBOL.fullmatch(sides[1]):
    return None
  left, symbol, right = sides
  opening = _OPENINGS[signs[0]]
  closing = _CLOSINGS[signs[1]]
  return _Interval(symbol, f"{opening}{left},{right}{closing}")
