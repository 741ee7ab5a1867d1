"""Figures of a study as PNG and SVG, drawn without a display."""

import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from synthjax import files
from synthjax.scaling.multiples import Efficiency, Point

# Okabe and Ito (2008): told apart under all common forms of colour blindness. The baseline is
# black; markers tell the arms apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = "osD^vPX*<>p"
_DOTS_PER_INCH = 160
STYLE: Any = {
  # The same figure gives the same bytes; text in the SVG stays text.
  "svg.hashsalt": "synthjax",
  "svg.fonttype": "none",
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
}


class _ArmStyle(NamedTuple):
  color: str
  marker: str
  shift: float  # factor on N, so that bars of arms at one N do not hide one another


def efficiency_figure(
  efficiency: Efficiency,
  path: files.Path,
  control: Efficiency | None = None,
  base: float | None = None,
) -> list[pathlib.Path]:
  """Draws error against N beside the data-efficiency multiple against N.

  Left: test error with its 95 % bars, the baseline's interpolated curve, and its law where it is
  supported (else the panel says that it is not). Right: multiples with their intervals. An arrow
  marks a bound, where the interval leaves the measured range; the grey line is the end of that
  range, N_max / N.

  Args:
    efficiency: the result of `multiples.analyse`.
    path: of the figure without a suffix.
    control: a negative control, the same arms where they should be worth nothing (a faultless
      teacher): a third panel.
    base: accuracy of the untrained policy, a line in the left panel; None: there is none.

  Returns:
    The files written, PATH.png and PATH.svg.
  """
  import matplotlib
  from matplotlib.figure import Figure

  studies = [efficiency]
  if control is not None:
    studies.append(control)
  styles = _styles(studies)
  with matplotlib.rc_context(STYLE):
    panels = 1 + len(studies)
    figure = Figure(figsize=(5.2 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels)
    _draw_errors(axes[0], efficiency, styles)
    if base is not None:
      _draw_base(axes[0], base)
    if control is not None:
      axes[2].sharey(axes[1])
      _draw_multiples(axes[2], control, styles, "Negative control")
    _draw_multiples(axes[1], efficiency, styles, "Data-efficiency multiple")
    handles = {}
    for axis in axes:
      for handle, label in zip(*axis.get_legend_handles_labels()):
        handles[label] = handle
    figure.legend(
      handles.values(), handles.keys(), loc="outside lower center", ncols=2 * panels, frameon=False
    )
    return [write(figure, f"{path}.{suffix}") for suffix in ("png", "svg")]


def write(figure, path: str) -> pathlib.Path:
  """Writes a figure completely or not at all; the suffix says the format."""
  metadata = None
  if path.endswith("svg"):
    metadata = {"Date": None}
  image = io.BytesIO()
  figure.savefig(
    image,
    format=path.rsplit(".", 1)[1],
    dpi=_DOTS_PER_INCH,
    metadata=metadata,
  )
  with files.replacing(path, "wb") as f:
    f.write(image.getvalue())
  return pathlib.Path(path)


def _styles(studies: list[Efficiency]) -> dict[str, _ArmStyle]:
  """How every arm is drawn, the same in all studies."""
  baseline = studies[0].settings.baseline
  styles = {baseline: _ArmStyle(color="black", marker="o", shift=1.0)}
  arms = list(dict.fromkeys(point.arm for study in studies for point in study.points))
  if baseline in arms:
    arms.remove(baseline)
  for k, arm in enumerate(arms):
    # All arms of one N lie within half a doubling.
    doublings = 0.5 * ((k + 0.5) / len(arms) - 0.5)
    styles[arm] = _ArmStyle(
      color=_COLOURS[k % len(_COLOURS)],
      marker=_MARKERS[(k + 1) % len(_MARKERS)],
      shift=2**doublings,
    )
  return styles


def _draw_base(axis, accuracy: float) -> None:
  error = 100 * (1 - accuracy)
  axis.axhline(error, color="0.5", linestyle="-.", linewidth=1, label="base, untrained")


def _draw_errors(axis, efficiency: Efficiency, styles: dict[str, _ArmStyle]) -> None:
  sizes = [size for size, _ in efficiency.curve]
  axis.plot(sizes, [100 * error for _, error in efficiency.curve], color="black", linewidth=1.2)
  _draw_law(axis, efficiency, sizes)
  for arm in dict.fromkeys(point.arm for point in efficiency.points):
    points, style = efficiency.at(arm), styles[arm]
    # The baseline's points are joined by its curve already.
    linestyle = "none" if arm == efficiency.settings.baseline else ":"
    axis.errorbar(
      [point.problems * style.shift for point in points],
      [100 * (1 - point.accuracy) for point in points],
      yerr=np.transpose([_bar(point) for point in points]),
      color=style.color,
      marker=style.marker,
      markersize=5,
      linestyle=linestyle,
      linewidth=1,
      elinewidth=1,
      label=arm,
    )
  _axis_of_problems(axis, efficiency)
  axis.set_ylabel("test error (%), with 95 % interval")
  _log_ticks(axis.yaxis, (1, 1.5, 2, 3, 4, 5, 7))
  axis.set_ylim(top=min(axis.get_ylim()[1], 105.0))
  # Where nearly everything is answered incorrectly, matplotlib's lower end shows nothing useful.
  if axis.get_ylim()[0] > 50:
    axis.set_ylim(bottom=50.0)
  axis.set_title("Error against problems", loc="left")


def _draw_law(axis, efficiency: Efficiency, sizes: list[int]) -> None:
  law = efficiency.law
  if not law.supported:
    reason = "power law not supported by the data"
    axis.text(0.02, 0.02, reason, transform=axis.transAxes, fontsize=9)
    return
  axis.plot(
    sizes,
    [100 * law.coefficient * size**-law.exponent for size in sizes],
    color="black",
    linestyle="--",
    linewidth=1,
    label=f"law: {100 * law.coefficient:.3g} % · N^−{law.exponent:.3f}",
  )


def _bar(point: Point) -> tuple[float, float]:
  """How far the error's bar, in percent, reaches below and above it."""
  low, high = point.interval
  error = 100 * (1 - point.accuracy)
  below = error - 100 * (1 - high)
  above = 100 * (1 - low) - error
  # The axis is logarithmic and has no zero.
  if high >= 1:
    below = 0.9 * error
  return max(below, 0.0), max(above, 0.0)


def _draw_multiples(axis, efficiency: Efficiency, styles: dict[str, _ArmStyle], title: str) -> None:
  settings = efficiency.settings
  unit = settings.baseline.upper()
  smallest, largest = efficiency.curve[0][0], efficiency.curve[-1][0]
  axis.axhline(1, color="black", linewidth=1.2)
  axis.plot([smallest, largest], [largest / smallest, 1], color="0.6", linewidth=1)
  axis.annotate(
    f"end of the {unit} curve",
    (smallest, largest / smallest),
    xytext=(6, 2),
    textcoords="offset points",
    fontsize=9,
    color="0.4",
    ha="left",
    va="bottom",
  )
  for point in efficiency.points:
    if point.arm != settings.baseline and point.multiple.defined:
      _draw_multiple(axis, point, styles[point.arm])
  _axis_of_problems(axis, efficiency)
  axis.set_ylabel(f"worth in {unit} problems, with {100 * settings.level:g} % interval")
  axis.set_yscale("log", base=2)
  axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
  axis.set_title(title, loc="left")


def _draw_multiple(axis, point: Point, style: _ArmStyle) -> None:
  """A marker with its interval.

  The marker is hollow where the value itself is a bound; an end that is one has an arrowhead.
  """
  multiple, x = point.multiple, point.problems * style.shift
  axis.plot([x, x], [multiple.low, multiple.high], color=style.color, linewidth=1.2)
  face = style.color
  if multiple.beyond:
    face = "white"
  axis.plot(
    x,
    multiple.value,
    marker=style.marker,
    color=style.color,
    markersize=6,
    markerfacecolor=face,
  )
  points_to_arrow = {"above": 16, "below": -16}
  for end, beyond in ((multiple.low, multiple.low_beyond), (multiple.high, multiple.high_beyond)):
    if beyond:
      axis.annotate(
        "",
        (x, end),
        xytext=(0, points_to_arrow[beyond]),
        textcoords="offset points",
        arrowprops={"arrowstyle": "<-", "color": style.color, "shrinkA": 0, "shrinkB": 0},
      )


def _axis_of_problems(axis, efficiency: Efficiency) -> None:
  sizes = sorted({point.problems for point in efficiency.points})
  axis.set_xscale("log", base=2)
  axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
  axis.minorticks_off()
  axis.set_xlabel("training problems N")
  axis.grid(axis="y", color="0.9", linewidth=0.8)
  axis.set_axisbelow(True)


def _log_ticks(axis_of, subdivisions: tuple[float, ...]) -> None:
  """A decimal log scale whose plain numbers are readable within one decade."""
  from matplotlib import ticker

  axis_of.axes.set_yscale("log")
  axis_of.set_major_locator(ticker.LogLocator(subs=subdivisions))
  axis_of.set_major_formatter(lambda value, _: f"{value:g}")
  axis_of.set_minor_locator(ticker.NullLocator())
