"""The phase diagram as a figure: one panel a plane, coloured by the gain of credit."""

from typing import Any

import numpy as np

from synthjax import files
from synthjax.config.credit_phase import CreditPhase
from synthjax.credit_phase.diagram import Gain, Plane
from synthjax.report import plots

_LABELS = {
  "success": "p, success of the reference",
  "length": "L, steps",
  "contexts": "V, contexts",
  "traces": "S, traces a problem",
  "rollouts": "n, rollouts a value",
}
_PANELS_IN_ROW = 4
_SCALE = 50  # points at which colours saturate


def draw(study: CreditPhase, planes: list[Plane], gains: dict, path: files.Path) -> list:
  """Gains in points over (second axis, u); returns the files written, PATH.png and PATH.svg.

  The black line is the border between cells whose gain pays and others. A dot marks a cell whose
  95 % interval excludes zero. Settings that no policy can have are grey.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(plots.STYLE):
    rows = -(-len(planes) // _PANELS_IN_ROW)
    figure = Figure(figsize=(15, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, _PANELS_IN_ROW, squeeze=False).ravel()
    for axis, plane in zip(axes, planes):
      image = _panel(axis, study, plane, gains[plane.name])
    for axis in axes[len(planes) :]:
      axis.set_axis_off()
    colours = figure.colorbar(image, ax=list(axes), shrink=0.8)
    colours.set_label("best method with credit less best control, points")
    return [plots.write(figure, f"{path}.{suffix}") for suffix in ("png", "svg")]


def _panel(axis, study: CreditPhase, plane: Plane, gains: dict[tuple, Gain]) -> Any:
  survivals = sorted(study.survivals)
  points = np.full((len(survivals), len(plane.values)), np.nan)
  for column, value in enumerate(plane.values):
    for row, u in enumerate(survivals):
      gain = gains.get((value, u))
      if gain is None:
        continue
      points[row, column] = 100 * gain.mean
      if gain.low > 0 or gain.high < 0:
        axis.plot(column, row, "k.", markersize=4)
  image = axis.imshow(
    points,
    origin="lower",
    aspect="auto",
    cmap="RdBu",
    vmin=-_SCALE,
    vmax=_SCALE,
  )
  axis.set_facecolor("0.85")
  _draw_border(axis, plane, survivals, gains)
  axis.set_xticks(range(len(plane.values)), _tick_labels(plane))
  axis.set_yticks(range(len(survivals)), [f"{u:g}" for u in survivals])
  axis.set_xlabel(_LABELS[plane.field])
  axis.set_ylabel("u, survival of a wrong step")
  axis.set_title(plane.name, loc="left")
  return image


def _tick_labels(plane: Plane) -> list[str]:
  labels = []
  for value in plane.values:
    label = f"{value:g}"
    if plane.field == "rollouts" and value == 0:
      label = "exact"
    labels.append(label)
  return labels


def _draw_border(axis, plane: Plane, survivals: list[float], gains: dict[tuple, Gain]) -> None:
  """Draws the edges between neighbours of which one pays and the other does not."""
  for column, value in enumerate(plane.values):
    for row, u in enumerate(survivals):
      left, right = column - 0.5, column + 0.5
      bottom, top = row - 0.5, row + 0.5
      here = gains.get((value, u))
      above = gains.get((value, _next(survivals, row)))
      beside = gains.get((_next(plane.values, column), u))
      if _differ(here, above):
        axis.plot([left, right], [top, top], "k-", linewidth=2)
      if _differ(here, beside):
        axis.plot([right, right], [bottom, top], "k-", linewidth=2)


def _differ(one: Gain | None, other: Gain | None) -> bool:
  """Whether both cells exist and only one of them pays."""
  if one is None or other is None:
    return False
  return one.pays != other.pays


def _next(values, index: int):
  """The value after one, None after the last."""
  if index + 1 < len(values):
    return values[index + 1]
  return None
