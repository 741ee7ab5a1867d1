"""Figures of a study as PNG and SVG, drawn without a display."""

import io
import pathlib
from typing import Any

import numpy as np

from synthjax import files
from synthjax.scaling.multiples import Efficiency, Point

# Okabe and Ito (2008): told apart under all common forms of colour blindness. The baseline is black; the marker tells arms apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = "osD^vPX*<>p"
_DOTS_PER_INCH = 160
# The same figure gives the same bytes; text in the SVG stays text.
STYLE: Any = {
  "svg.hashsalt": "synthjax",
  "svg.fonttype": "none",
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
}


def efficiency_figure(
  efficiency: Efficiency,
  path: files.Path,
  control: Efficiency | None = None,
  base: float | None = None,
) -> list[pathlib.Path]:
  """Error against N beside the data-efficiency multiple against N, all with intervals; and the multiples of a negative control.

  Left: test error with its 95 % bars, the baseline's curve as it is interpolated, and its law where it is supported (else the panel
  says that it is not). Right: multiples with their intervals; an arrow is a bound, where the interval leaves the measured range, and the
  grey line is that range's end, N_max / N.

  Args:
    efficiency: what `scaling.efficiency.analyse` found.
    path: of the figure without a suffix.
    control: the same arms where they should be worth nothing (a faultless teacher): a third panel.
    base: accuracy of the untrained policy, a line in the left panel; None: there is none.

  Returns:
    The files written, PATH.png and PATH.svg.
  """
  import matplotlib
  from matplotlib.figure import Figure

  styles = _styles(efficiency, control)
  with matplotlib.rc_context(STYLE):
    panels = 2 if control is None else 3
    figure = Figure(figsize=(5.2 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels)
    _errors(axes[0], efficiency, styles)
    if base is not None:
      axes[0].axhline(
        100 * (1 - base), color="0.5", linestyle="-.", linewidth=1, label="base, untrained"
      )
    if control is not None:
      axes[2].sharey(axes[1])
      _multiples(axes[2], control, styles, "Negative control")
    _multiples(axes[1], efficiency, styles, "Data-efficiency multiple")
    handles = {
      label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(
      handles.values(), handles.keys(), loc="outside lower center", ncols=2 * panels, frameon=False
    )
    return [write(figure, f"{path}.{suffix}") for suffix in ("png", "svg")]


def write(figure, path: str) -> pathlib.Path:
  """Writes a figure whole or not at all; the suffix says the format."""
  drawn = io.BytesIO()
  figure.savefig(
    drawn,
    format=path.rsplit(".", 1)[1],
    dpi=_DOTS_PER_INCH,
    metadata={"Date": None} if path.endswith("svg") else None,
  )
  with files.replacing(path, "wb") as f:
    f.write(drawn.getvalue())
  return pathlib.Path(path)


def _styles(*studies: Efficiency | None) -> dict[str, dict[str, Any]]:
  """Colour, marker and sideways shift (a factor on N, so that bars do not hide one another) of every arm."""
  found = [study for study in studies if study is not None]
  arms = [
    arm
    for arm in dict.fromkeys(point.arm for study in found for point in study.points)
    if arm != found[0].settings.baseline
  ]
  styles: dict[str, dict[str, Any]] = {
    found[0].settings.baseline: {"color": "black", "marker": "o", "shift": 1.0}
  }
  for k, arm in enumerate(arms):
    shift = 2 ** (
      0.5 * ((k + 0.5) / len(arms) - 0.5)
    )  # all arms of one N lie within half a doubling
    styles[arm] = {
      "color": _COLOURS[k % len(_COLOURS)],
      "marker": _MARKERS[(k + 1) % len(_MARKERS)],
      "shift": shift,
    }
  return styles


def _errors(axis, efficiency: Efficiency, styles) -> None:
  baseline, law = efficiency.settings.baseline, efficiency.law
  sizes = [size for size, _ in efficiency.curve]
  axis.plot(sizes, [100 * error for _, error in efficiency.curve], color="black", linewidth=1.2)
  if law.supported:
    axis.plot(
      sizes,
      [100 * law.coefficient * size**-law.exponent for size in sizes],
      color="black",
      linestyle="--",
      linewidth=1,
      label=f"law: {100 * law.coefficient:.3g} % · N^−{law.exponent:.3f}",
    )
  else:
    axis.text(
      0.02, 0.02, "power law not supported by the data", transform=axis.transAxes, fontsize=9
    )
  for arm in dict.fromkeys(point.arm for point in efficiency.points):
    points, style = efficiency.at(arm), styles[arm]
    axis.errorbar(
      [point.problems * style["shift"] for point in points],
      [100 * (1 - point.accuracy) for point in points],
      yerr=np.transpose([_bar(point) for point in points]),
      color=style["color"],
      marker=style["marker"],
      markersize=5,
      linestyle="none" if arm == baseline else ":",
      linewidth=1,
      elinewidth=1,
      label=arm,
    )
  _axis_of_problems(axis, efficiency)
  axis.set_ylabel("test error (%), with 95 % interval")
  _log_ticks(axis.yaxis, (1, 1.5, 2, 3, 4, 5, 7))
  axis.set_ylim(top=min(axis.get_ylim()[1], 105.0))
  if axis.get_ylim()[0] > 50:  # nearly everything is answered incorrectly
    axis.set_ylim(bottom=50.0)
  axis.set_title("Error against problems", loc="left")


def _bar(point: Point) -> tuple[float, float]:
  """How far the error's bar, in percent, reaches below and above it."""
  low, high = point.interval
  error = 100 * (1 - point.accuracy)
  below = error - 100 * (1 - high)
  if high >= 1:  # the axis is logarithmic and has no zero
    below = 0.9 * error
  return max(below, 0.0), max(100 * (1 - low) - error, 0.0)


def _multiples(axis, efficiency: Efficiency, styles, title: str) -> None:
  baseline, (smallest, largest) = (
    efficiency.settings.baseline,
    (efficiency.curve[0][0], efficiency.curve[-1][0]),
  )
  axis.axhline(1, color="black", linewidth=1.2)
  axis.plot([smallest, largest], [largest / smallest, 1], color="0.6", linewidth=1)
  axis.annotate(
    f"end of the {baseline.upper()} curve",
    (smallest, largest / smallest),
    xytext=(6, 2),
    textcoords="offset points",
    fontsize=9,
    color="0.4",
    ha="left",
    va="bottom",
  )
  for point in efficiency.points:
    if point.arm != baseline and point.multiple.defined:
      _multiple(axis, point, styles[point.arm])
  _axis_of_problems(axis, efficiency)
  axis.set_ylabel(
    f"worth in {baseline.upper()} problems, with {100 * efficiency.settings.level:g} % interval"
  )
  axis.set_yscale("log", base=2)
  axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
  axis.set_title(title, loc="left")


def _multiple(axis, point: Point, style) -> None:
  """A marker with its interval; hollow where the value itself is a bound, an arrowhead at an end that is one."""
  multiple, x = point.multiple, point.problems * style["shift"]
  axis.plot([x, x], [multiple.low, multiple.high], color=style["color"], linewidth=1.2)
  axis.plot(
    x,
    multiple.value,
    marker=style["marker"],
    color=style["color"],
    markersize=6,
    markerfacecolor="white" if multiple.beyond else style["color"],
  )
  for end, beyond in ((multiple.low, multiple.low_beyond), (multiple.high, multiple.high_beyond)):
    if beyond:
      axis.annotate(
        "",
        (x, end),
        xytext=(0, 16 if beyond == "above" else -16),
        textcoords="offset points",
        arrowprops={"arrowstyle": "<-", "color": style["color"], "shrinkA": 0, "shrinkB": 0},
      )


def _axis_of_problems(axis, efficiency: Efficiency) -> None:
  sizes = sorted({point.problems for point in efficiency.points})
  axis.set_xscale("log", base=2)
  axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
  axis.minorticks_off()
  axis.set_xlabel("training problems N")
  axis.grid(axis="y", color="0.9", linewidth=0.8)
  axis.set_axisbelow(True)


def _log_ticks(axis_of, at) -> None:
  """A decimal log scale whose plain numbers are readable within one decade."""
  from matplotlib import ticker

  axis_of.axes.set_yscale("log")
  axis_of.set_major_locator(ticker.LogLocator(subs=at))
  axis_of.set_major_formatter(lambda value, _: f"{value:g}")
  axis_of.set_minor_locator(ticker.NullLocator())
