"""The phase diagram as Markdown tables and as JSON."""

from collections.abc import Iterable

from synthjax.config.credit_phase import Chain, CreditPhase
from synthjax.credit_phase import diagram, methods
from synthjax.credit_phase.diagram import Gain, Plane
from synthjax.credit_phase.tuning import Outcome

METHODS = (*methods.OUTCOME, *methods.CREDIT)


def page(study: CreditPhase, planes: list[Plane], gains: dict, outcomes: dict) -> str:
  """All methods on the table's settings, every plane's border, and gains cell by cell."""
  parts = [_of_methods(study, outcomes), _of_borders(study, planes, gains)]
  parts += [_of_gains(study, plane, gains[plane.name]) for plane in planes]
  parts.append(
    f"Chosen rates at an end of their grid, with a success below 0.99: "
    f"{100 * at_edge(outcomes):.0f} % of all tunings."
  )
  return "\n\n".join(parts) + "\n"


def results(study: CreditPhase, planes: list[Plane], gains: dict, outcomes: dict) -> dict:
  """The same as JSON; intervals are 95 %, of means over replicates or of gains."""
  table = []
  for chain in study.table:
    found = outcomes[diagram.parts(diagram.Cell(chain, False))[0]]
    rows = {
      name: {
        "success": mean(found[name]),
        "half_interval": half(found[name]),
        **found[name].chosen._asdict(),
      }
      for name in METHODS
    }
    table.append({"setting": _name(chain), "methods": rows})
  of_planes = {}
  for plane in planes:
    cells = [
      {plane.field: value, "survival": u, **gain._asdict()}
      for (value, u), gain in gains[plane.name].items()
    ]
    ends = [[value, u] for value, u in diagram.border(plane, gains[plane.name]).items()]
    of_planes[plane.name] = {"cells": cells, "border": ends}
  return {"table": table, "planes": of_planes, "rates_at_edge": at_edge(outcomes)}


def at_edge(outcomes: dict) -> float:
  """Share of tunings that chose the smallest or the largest rate and are not at their ceiling."""
  chosen = [outcome.chosen for found in outcomes.values() for outcome in found.values()]
  return sum(each.at_edge for each in chosen) / len(chosen)


def mean(outcome: Outcome) -> float:
  return sum(outcome.success_R) / len(outcome.success_R)


def half(outcome: Outcome) -> float:
  """Half the width of Student's 95 % interval of the mean over replicates."""
  return diagram.difference(outcome.success_R, [0.0] * len(outcome.success_R), paired=True)[1]


def _of_methods(study, outcomes) -> str:
  rows = []
  for chain in study.table:
    found = outcomes[diagram.parts(diagram.Cell(chain, False))[0]]
    shown = [f"{mean(found[name]):.2f} ± {half(found[name]):.2f}" for name in METHODS]
    rows.append([_name(chain), f"{chain.correct:.2f}", *shown])
  return _markdown(["setting", "c", *METHODS], rows)


def _of_borders(study, planes, gains) -> str:
  rows = []
  for plane in planes:
    ends = diagram.border(plane, gains[plane.name])
    shown = [
      f"{_value(plane, value)}: {'none' if u is None else f'{u:g}'}" for value, u in ends.items()
    ]
    rows.append([plane.name, "; ".join(shown)])
  return _markdown(["plane", "smallest u from which credit pays, by the second axis"], rows)


def _of_gains(study, plane, gains: dict[tuple, Gain]) -> str:
  rows = []
  for value in plane.values:
    shown = [_gain(gains.get((value, u))) for u in study.survivals]
    rows.append([_value(plane, value), *shown])
  return _markdown([plane.name, *(f"u = {u:g}" for u in study.survivals)], rows)


def _gain(gain: Gain | None) -> str:
  if gain is None:
    return ""
  points, low, high = 100 * gain.mean, 100 * gain.low, 100 * gain.high
  return f"{points:+.0f} ({low:.0f} to {high:.0f}) {gain.credit} - {gain.control}"


def _name(chain: Chain) -> str:
  parts = [
    f"u = {chain.survival:g}",
    f"p = {chain.success:g}",
    f"L = {chain.length}",
    f"V = {chain.contexts}",
    f"S = {chain.traces}",
  ]
  return ", ".join(parts)


def _value(plane: Plane, value) -> str:
  if plane.field == "rollouts" and value == 0:
    return "exact"
  return f"{value:g}"


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  header = list(header)
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
