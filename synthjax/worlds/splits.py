"""Distinct problems of one split, from the stream of problems that an embedded world draws."""

from collections.abc import Callable, Iterable

from synthjax.errors import ConfigError
from synthjax.records import Problem

_STALE = 20_000  # draws in a row without a new problem that mean a split is exhausted


def distinct(
  drawn: Iterable[Problem],
  name: Callable[[Problem], str],
  inside: Callable[[str], bool],
  count: int,
  where: tuple[str, str],
) -> list[Problem]:
  """The first `count` distinct problems of a split: a longer list begins with the shorter one.

  Args:
    drawn: in a seeded order, with repeats, of all splits.
    name: problems with one name are the same.
    inside: whether a name is in the split.
    count: how many.
    where: what the split is called, and what to do where it holds fewer.

  Raises:
    ConfigError: the split holds fewer distinct problems.
  """
  split, remedy = where
  kept: dict[str, Problem] = {}
  stale = 0
  for problem in drawn:
    if len(kept) >= count:
      break
    key = name(problem)
    if key not in kept and inside(key):
      kept[key] = problem
      stale = 0
      continue
    stale += 1
    if stale > _STALE:
      raise ConfigError(
        f"{split} has about {len(kept)} distinct problems; {count} were asked for: "
        f"{remedy}, or ask for fewer"
      )
  return list(kept.values())
