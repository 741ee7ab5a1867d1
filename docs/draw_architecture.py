"""Draws docs/architecture.svg, the flow of data through the rooms.

Run it by python docs/draw_architecture.py.
"""

import pathlib

WIDTH, HEIGHT = 960, 430
BOX_WIDTH, BOX_HEIGHT = 132, 46

# Name of a box -> (column, row, room below it).
BOXES = {
  "problems, traces": (0, 0, "data/ worlds/"),
  "text, pairs": (0, 2, "data/"),
  "tokenise, cache": (1, 0, "data/ (seqio, Beam)"),
  "pack, load": (2, 0, "data/ (grain)"),
  "train": (3, 0, "train/ losses/ kernels/"),
  "policy": (4, 0, "model/ checkpoints"),
  "sample": (4, 1, "rollout/"),
  "verify": (3, 1, "verify/"),
  "step values, pits": (2, 1, "credit/"),
  "pairs, trees": (1, 1, "credit/ data/"),
  "evaluate": (4, 2, "evaluate/"),
  "laws, multiples": (3, 2, "scaling/"),
  "tables, figures": (2, 2, "report/"),
}
ARROWS = (
  ("problems, traces", "tokenise, cache"),
  ("tokenise, cache", "pack, load"),
  ("pack, load", "train"),
  ("train", "policy"),
  ("policy", "sample"),
  ("sample", "verify"),
  ("verify", "step values, pits"),
  ("step values, pits", "pairs, trees"),
  ("pairs, trees", "train"),
  ("sample", "evaluate"),
  ("evaluate", "laws, multiples"),
  ("laws, multiples", "tables, figures"),
  ("text, pairs", "tokenise, cache"),
)


def _centre(name: str) -> tuple[float, float]:
  column, row, _ = BOXES[name]
  return 90 + column * 195, 90 + row * 125


def _edge(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
  """Where the line from the centre `start` towards `end` leaves the box around `start`."""
  dx, dy = end[0] - start[0], end[1] - start[1]
  reach_x = BOX_WIDTH / 2 / abs(dx) if dx else float("inf")
  reach_y = BOX_HEIGHT / 2 / abs(dy) if dy else float("inf")
  share = min(reach_x, reach_y)
  return start[0] + share * dx, start[1] + share * dy


def _arrow(first: str, second: str) -> str:
  start, end = _centre(first), _centre(second)
  x1, y1 = _edge(start, end)
  x2, y2 = _edge(end, start)
  return (
    f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" '
    'stroke="#555" stroke-width="1.6" marker-end="url(#head)"/>'
  )


def _box(name: str) -> str:
  x, y = _centre(name)
  room = BOXES[name][2]
  left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
  return (
    f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
    'fill="#eef3fb" stroke="#3b6ea8"/>'
    f'<text x="{x:.0f}" y="{y - 3:.0f}" font-size="14" fill="#111">{name}</text>'
    f'<text x="{x:.0f}" y="{y + 14:.0f}" font-size="11" fill="#555">{room}</text>'
  )


def draw() -> str:
  """The picture as SVG text."""
  head = (
    '<defs><marker id="head" markerWidth="9" markerHeight="9" refX="8" refY="4" orient="auto">'
    '<path d="M0,0 L9,4 L0,8 z" fill="#555"/></marker></defs>'
  )
  note = (
    f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 18}" font-size="12" fill="#555">every box is a stage '
    "with a manifest: finished ones are skipped, interrupted ones continue</text>"
  )
  parts = [head, *(_arrow(*pair) for pair in ARROWS), *(_box(name) for name in BOXES), note]
  body = "\n".join(parts)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    'font-family="sans-serif" text-anchor="middle">\n'
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
  )


if __name__ == "__main__":
  path = pathlib.Path(__file__).with_name("architecture.svg")
  path.write_text(draw(), encoding="utf-8")
  print(path)
