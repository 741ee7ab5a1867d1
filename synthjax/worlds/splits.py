"""What every embedded world does with its drawn problems: distinct ones of one split, in the order in which they come."""

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
    ValueError: the split holds fewer distinct problems.
  """
  found: dict[str, Problem] = {}
  stale = 0
  for problem in drawn:
    if len(found) >= count:
      break
    key = name(problem)
    stale = stale + 1 if key in found or not inside(key) else 0
    if stale == 0:
      found[key] = problem
    elif stale > _STALE:
      raise ConfigError(
        f"{where[0]} has about {len(found)} distinct problems; {count} were asked for: {where[1]}, or ask for fewer"
      )
  return list(found.values())
