"""The house holds: every room imports from the rooms below it, and no file imports in a circle."""

import ast
import collections
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "synthjax"

# Rooms from the ground up; those of one line do not know each other.
FLOORS = (
  ("errors",),
  ("config",),
  ("progress",),
  ("stopping",),
  ("multihost",),
  ("locks",),
  ("files",),
  ("workfolder", "records", "keys", "shipped"),
  ("stages", "starters"),
  ("kernels", "stats"),
  ("losses", "sharding", "worlds"),
  ("model", "verify"),
  ("data", "scaling"),
  ("rollout", "train", "report"),
  ("evaluate", "serve", "credit", "credit_phase"),
  ("overlap",),
  ("job",),
  ("math_study",),
  ("recipes",),
  ("bench",),
  ("cli",),
  ("__main__",),
)


def _modules(package: pathlib.Path) -> dict[str, pathlib.Path]:
  """Dotted name, without the package's own, -> file."""
  found = {}
  for path in sorted(package.rglob("*.py")):
    parts = path.relative_to(package).with_suffix("").parts
    found[".".join(parts).removesuffix(".__init__")] = path
  return found


def _imports(package: pathlib.Path) -> dict[str, set[str]]:
  """File -> files of ours that it imports, wherever in it the import stands."""
  modules = _modules(package)
  found = collections.defaultdict(set)
  for name, path in modules.items():
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if not isinstance(node, ast.ImportFrom) or not node.module:
        continue
      if node.module.split(".")[0] != package.name:
        continue
      base = node.module.removeprefix(package.name).removeprefix(".")
      for alias in node.names:
        inner = f"{base}.{alias.name}".removeprefix(".")
        target = inner if inner in modules else base
        # A package's __init__ may name its own files, and they its constants.
        if target and target != name and not name.startswith(f"{target}."):
          found[name].add(target)
  return found


def _upward(imports: dict[str, set[str]], floors) -> list[str]:
  """Imports that do not run downward, each with both files."""
  floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
  found = []
  for name, targets in imports.items():
    for target in sorted(targets):
      above, below = name.split(".")[0], target.split(".")[0]
      if above != below and floor[above] <= floor[below]:
        found.append(f"{name} imports {target}")
  return found


def _circle(imports: dict[str, set[str]]) -> list[str]:
  """The files of one circle of imports, in its order; [] where there is none."""
  finished: set[str] = set()

  def follow(name: str, path: list[str]) -> list[str]:
    if name in path:
      return path[path.index(name) :] + [name]
    if name not in finished:
      for target in sorted(imports.get(name, ())):
        circle = follow(target, [*path, name])
        if circle:
          return circle
      finished.add(name)
    return []

  for name in sorted(imports):
    circle = follow(name, [])
    if circle:
      return circle
  return []


def test_every_room_has_its_floor():
  rooms = {name.split(".")[0] for name in _modules(PACKAGE)} - {"__init__"}
  placed = [room for rooms_of_floor in FLOORS for room in rooms_of_floor]
  assert sorted(placed) == sorted(set(placed)) and rooms == set(placed)


def test_imports_run_downward():
  assert _upward(_imports(PACKAGE), FLOORS) == []


def test_no_file_imports_in_a_circle():
  assert _circle(_imports(PACKAGE)) == []


@pytest.mark.parametrize(
  ("low", "high", "upward", "circle"),
  [
    ("", "from house import low", [], []),
    ("def f():\n  from house.high import x", "x = 1", ["low imports high"], []),
    ("from house import high", "from house import low", ["low imports high"], ["high", "low"]),
  ],
)
def test_an_import_that_runs_upward_and_a_circle_are_found_and_named(
  tmp_path, low, high, upward, circle
):
  package = tmp_path / "house"
  package.mkdir()
  (package / "low.py").write_text(low)
  (package / "high.py").write_text(high)
  imports = _imports(package)
  assert _upward(imports, (("low",), ("high",))) == upward
  assert _circle(imports)[:2] == circle
