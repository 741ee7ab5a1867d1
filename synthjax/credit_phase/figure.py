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
_SCALE = 50  # points at which colours end


def draw(study: CreditPhase, planes: list[Plane], gains: dict, path: files.Path) -> list:
  """Gains in points over (second axis, u); returns the files written, PATH.png and PATH.svg.

  The black line is the border between cells whose gain pays and others. A dot marks a cell whose
  95 % interval excludes zero. Settings that no policy can have are grey.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(plots.STYLE):
    rows = -(-len(planes) // 4)
    figure = Figure(figsize=(15, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).ravel()
    for axis, plane in zip(axes, planes):
      image = _panel(axis, study, plane, gains[plane.name])
    for axis in axes[len(planes) :]:
      axis.set_axis_off()
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8)
    bar.set_label("best method with credit less best control, points")
    return [plots.write(figure, f"{path}.{suffix}") for suffix in ("png", "svg")]


def _border(axis, plane: Plane, survivals: list[float], gains: dict[tuple, Gain]) -> None:
  """Draws the edges between neighbours of which one pays and the other does not."""
  for column, value in enumerate(plane.values):
    for row, u in enumerate(survivals):
      here = gains.get((value, u))
      above = gains.get((value, _next(survivals, row)))
      after = gains.get((_next(plane.values, column), u))
      if here and above and here.pays != above.pays:
        axis.plot([column - 0.5, column + 0.5], [row + 0.5, row + 0.5], "k-", linewidth=2)
      if here and after and here.pays != after.pays:
        axis.plot([column + 0.5, column + 0.5], [row - 0.5, row + 0.5], "k-", linewidth=2)


def _next(values, index: int):
  """The value after one, None after the last."""
  return values[index + 1] if index + 1 < len(values) else None


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
  image = axis.imshow(points, origin="lower", aspect="auto", cmap="RdBu", vmin=-_SCALE, vmax=_SCALE)
  axis.set_facecolor("0.85")
  _border(axis, plane, survivals, gains)
  ticks = ["exact" if plane.field == "rollouts" and not v else f"{v:g}" for v in plane.values]
  axis.set_xticks(range(len(plane.values)), ticks)
  axis.set_yticks(range(len(survivals)), [f"{u:g}" for u in survivals])
  axis.set_xlabel(_LABELS[plane.field])
  axis.set_ylabel("u, survival of a wrong step")
  axis.set_title(plane.name, loc="left")
  return image
