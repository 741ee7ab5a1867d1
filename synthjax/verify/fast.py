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
_SUBSCRIPT = re.compile(r"(?<=[0-9A-F])\s*_\s*\{?\s*\d+\s*\}?")
_ELLIPSIS = re.compile(r"\\[lcdv]?dots(?:c|b|m|o)?(?![A-Za-z])|\.\.\.|\N{HORIZONTAL ELLIPSIS}")


class _Rules(NamedTuple):
  """What counts as equal, and who is asked about the parts that are left open."""

  policy: Policy
  leaf: Leaf | None


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
  return _same(clean(gold), clean(prediction), _Rules(policy, leaf))


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


def _same(gold: str, found: str, rules: _Rules) -> bool | None:
  if squeeze(gold) == squeeze(found):
    return True if squeeze(gold) else None
  if not (is_balanced(gold) and is_balanced(found)):
    return _asked(gold, found, rules)
  for name, pattern in (("ellipsis", _ELLIPSIS), ("subscript", _SUBSCRIPT)):
    if pattern.search(gold) or pattern.search(found):
      if getattr(rules.policy, name):
        return _compact(gold) == _compact(found)
      gold, found = (re.sub(r",\s*$", "", pattern.sub("", text).strip()) for text in (gold, found))
  return _of_forms(gold, found, forms.form(gold), forms.form(found), rules)


def _asked(gold: str, found: str, rules: _Rules) -> bool | None:
  return None if rules.leaf is None else rules.leaf(gold, found)


def _compact(text: str) -> str:
  return re.sub(r"\s|\\word|[{}]", "", text)


def _of_forms(
  gold: str, found: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  if isinstance(one, Assigned) and isinstance(other, Assigned):
    if one.name == other.name or not rules.policy.names:
      return _same(one.body, other.body, rules)
    return _same_equations(gold, found, _opened(one), _opened(other), rules)
  if isinstance(one, Relation) or isinstance(other, Relation):
    return _same_relations(gold, found, one, other, rules)
  if isinstance(one, Assigned):
    return _same(one.body, found, rules)
  if isinstance(other, Assigned):
    return _same(gold, other.body, rules)
  if isinstance(one, Measured) or isinstance(other, Measured):
    return _same_measured(gold, found, one, other, rules)
  if isinstance(one, Group) and isinstance(other, Group):
    return _same_groups(gold, found, one, other, rules)
  if one is None or other is None:
    return _asked(gold, found, rules)
  if isinstance(one, Group):
    return _same_group_and_single(one, found, other, rules, gold_first=True)
  if isinstance(other, Group):
    return _same_group_and_single(other, gold, one, rules, gold_first=False)
  same = values.same(one, other, rules.policy)
  return _asked(gold, found, rules) if same is None else same


def _same_measured(
  gold: str, found: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  units = [form.unit if isinstance(form, Measured) else "" for form in (one, other)]
  if rules.policy.units and all(units) and units[0] != units[1]:
    return False
  if values.is_counted(one):
    return False  # in another unit than the gold, which knows its own
  bodies = [
    form.body if isinstance(form, Measured) else text
    for form, text in ((one, gold), (other, found))
  ]
  if (units[0] == "percent") != (units[1] == "percent"):
    verdict = _without_percent(bodies, units, rules.policy)
    if verdict is not None:
      return verdict
  return _same(bodies[0], bodies[1], rules)


def _without_percent(bodies: list[str], units: list[str], policy: Policy) -> bool | None:
  """One number has a percent sign and the other has none; None where the sign is but a unit."""
  numbers = [forms.form(body) for body in bodies]
  share, plain = numbers if units[0] == "percent" else numbers[::-1]
  if not isinstance(share, Number) or not isinstance(plain, Number):
    return None
  if not policy.percent:
    return share.value in (plain.value, plain.value * 100)
  return False if 0 < abs(share.value) < 1 else None  # 0.5 % is hardly meant for a half


# Groups.

_IN_ANY_ORDER = ("{}", "", "union")
_INTERVALS = {"()", "[]", "(]", "[)"}


def _same_groups(gold: str, found: str, one: Group, other: Group, rules: _Rules) -> bool | None:
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
    return _asked(gold, found, rules)  # [0,1] and [1,2] together are [0,2]
  return False


def _as_union(group: Group) -> Group:
  """A list of inequalities of one symbol, x < 1 or x > 2, as the intervals that they are."""
  relations = [forms.form(item) for item in group.items]
  intervals = [_interval(form) for form in relations if isinstance(form, Relation)]
  symbols = {interval.symbol for interval in intervals if interval is not None}
  if len(symbols) != 1 or len(intervals) < len(group.items) or None in intervals:
    return group
  return Group("union", tuple(interval.text for interval in intervals if interval is not None))


def _by_position(gold: Group, found: Group) -> bool:
  """Whether one list has two or more names and the other has none: x=3, y=4 and 3, 4."""
  of_names = []
  for group in (gold, found):
    read = [forms.form(item) for item in group.items]
    of_names.append({form.name for form in read if isinstance(form, Assigned)})
  return max(len(names) for names in of_names) > 1 and len(of_names[0]) != len(of_names[1])


def _in_order(gold: Sequence[str], found: Sequence[str], rules: _Rules) -> bool | None:
  if len(gold) != len(found):
    return False
  unknown = False
  for one, other in zip(gold, found):
    verdict = _same(one, other, rules)
    if verdict is False:
      return False
    unknown |= verdict is None
  return None if unknown else True


def _in_any_order(gold: Group, found: Group, rules: _Rules) -> bool | None:
  """Matched greedily, equality being transitive; a pair that is open leaves the whole open."""
  ones, others = list(gold.items), list(found.items)
  if "{}" in (gold.brackets, found.brackets):
    ones, others = _distinct(ones, rules.policy), _distinct(others, rules.policy)
  if max(len(ones), len(others)) > _MOST_ITEMS:
    return None
  if len(ones) != len(others):
    return False
  unknown = False
  for one in ones:
    verdicts = [_same(one, other, rules) for other in others]
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
    if not any(_same(item, other, _Rules(policy, None)) for other in kept):
      kept.append(item)
  return kept


def _same_group_and_single(
  group: Group, single: str, form: Form, rules: _Rules, gold_first: bool
) -> bool | None:
  """A set of one may be its element; any other group is no single thing."""
  if group.brackets == "{}" and len(group.items) == 1:
    item = group.items[0]
    return _same(item, single, rules) if gold_first else _same(single, item, rules)
  return None if isinstance(form, Phrase) else False


# Equations and inequalities.

_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def _same_relations(
  gold: str, found: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  """At least one is a relation."""
  if one is None or other is None:
    return _asked(gold, found, rules)
  if isinstance(one, Assigned) and rules.policy.equation and not _has_variables(one.body):
    return False  # 2x = 10 for x = 5 is still to be solved
  left, right = _opened(one), _opened(other)
  if isinstance(left, Relation) and isinstance(right, Relation):
    if set(left.signs) == set(right.signs) == {"="}:
      return _same_equations(gold, found, left, right, rules)
    return _same_inequalities(gold, found, left, right, rules)
  if isinstance(left, Relation):
    return _same_relation_and_single(left, found, other, rules, gold_first=True)
  assert isinstance(right, Relation)
  return _same_relation_and_single(right, gold, one, rules, gold_first=False)


def _same_relation_and_single(
  relation: Relation, single: str, form: Form, rules: _Rules, gold_first: bool
) -> bool | None:
  """An inequality of one symbol is an interval, and an equation is no answer to anything else."""
  interval = _interval(relation)
  if interval is not None and isinstance(form, Group):
    if not gold_first:
      return _same(single, interval.text, rules) if rules.policy.intervals else False
    return _same(interval.text, single, rules)
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
  gold: str, found: str, one: Form | None, other: Form | None, rules: _Rules
) -> bool | None:
  """Equal are equations whose residuals, left minus right, are the same up to a constant factor."""
  left, right = _residual(one), _residual(other)
  if left is None or right is None:
    return _asked(gold, found, rules)
  names = [residual.names - {"pi"} for residual in (left, right)]
  if not names[0] or names[0] != names[1]:
    return False  # an equation without variables says nothing
  return True if numeric.proportional(left, right) else _asked(gold, found, rules)


def _residual(relation: Form | None) -> expressions.Expression | None:
  if not isinstance(relation, Relation) or len(relation.sides) != 2:
    return None
  left, right = (expressions.parse(side) for side in relation.sides)
  return None if left is None or right is None else numeric.difference(left, right)


def _same_inequalities(
  gold: str, found: str, one: Relation, other: Relation, rules: _Rules
) -> bool | None:
  for candidate in (other, _reversed(other)):
    if candidate.signs == one.signs and _in_order(one.sides, candidate.sides, rules):
      return True
  left, right = _residual(one), _residual(other)
  if left is None or right is None:
    return _asked(gold, found, rules)
  factor = numeric.proportional(left, right)
  if factor is None:
    return _asked(gold, found, rules)
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


_SYMBOL = re.compile(r"\\?[A-Za-z]+")


def _interval(relation: Relation) -> _Interval | None:
  """1 < x <= 2 as (1,2], and x > 1 as (1,oo)."""
  if relation.signs[0] in (">", r"\geq"):
    relation = _reversed(relation)
  if not set(relation.signs) <= {"<", r"\leq"}:
    return None
  sides, signs = relation.sides, relation.signs
  if len(sides) == 2 and _SYMBOL.fullmatch(sides[0]):
    sides, signs = (r"-\infty", *sides), ("<", *signs)
  elif len(sides) == 2:
    sides, signs = (*sides, r"\infty"), (*signs, "<")
  if len(sides) != 3 or not _SYMBOL.fullmatch(sides[1]):
    return None
  opening = "(" if signs[0] == "<" else "["
  closing = ")" if signs[1] == "<" else "]"
  return _Interval(sides[1], f"{opening}{sides[0]},{sides[2]}{closing}")
