"""The phase diagram as Markdown tables and as JSON."""

from collections.abc import Sequence

from synthjax.config.credit_phase import Chain, CreditPhase
from synthjax.credit_phase import diagram, methods
from synthjax.credit_phase.diagram import Gain, PhaseCell, Plane
from synthjax.credit_phase.tuning import Outcome

METHODS = (*methods.OUTCOME, *methods.CREDIT)


def page(study: CreditPhase, planes: list[Plane], gains: dict, outcomes: dict) -> str:
  """All methods on the table's settings, every plane's border, and gains cell by cell."""
  sections = [_methods_table(study, outcomes), _borders_table(planes, gains)]
  for plane in planes:
    sections.append(_gains_table(study, plane, gains[plane.name]))
  share = 100 * at_edge(outcomes)
  sections.append(
    "Chosen rates at an end of their grid, with a success below 0.99: "
    f"{share:.0f} % of all tunings."
  )
  return "\n\n".join(sections) + "\n"


def results(study: CreditPhase, planes: list[Plane], gains: dict, outcomes: dict) -> dict:
  """The same as JSON; intervals are 95 %, of means over replicates or of gains."""
  table = []
  for chain in study.table:
    of_chain = _outcomes_of(chain, outcomes)
    rows = {method: _method_row(of_chain[method]) for method in METHODS}
    table.append({"setting": _name(chain), "methods": rows})
  plane_results = {plane.name: _plane_result(plane, gains[plane.name]) for plane in planes}
  return {"table": table, "planes": plane_results, "rates_at_edge": at_edge(outcomes)}


def at_edge(outcomes: dict) -> float:
  """Share of tunings that chose the smallest or largest rate although success was below 0.99."""
  flags = []
  for of_part in outcomes.values():
    flags += [outcome.chosen.at_edge for outcome in of_part.values()]
  return sum(flags) / len(flags)


def mean(outcome: Outcome) -> float:
  """Mean success over the reported replicates."""
  return sum(outcome.success_R) / len(outcome.success_R)


def half(outcome: Outcome) -> float:
  """Half the width of Student's 95 % interval of the mean over replicates."""
  zeros = [0.0] * len(outcome.success_R)
  _, half_width = diagram.difference(outcome.success_R, zeros, paired=True)
  return half_width


def _outcomes_of(chain: Chain, outcomes: dict) -> dict[str, Outcome]:
  """Outcomes of all methods on a setting of the table."""
  (part,) = diagram.parts(PhaseCell(chain, equal_sampling=False))
  return outcomes[part]


def _method_row(outcome: Outcome) -> dict:
  """The success on the reported replicates, and the setting with the success that chose it."""
  setting = outcome.chosen._asdict()
  return {
    "success": mean(outcome),
    "half_interval": half(outcome),
    "tuning_success": setting.pop("success"),
    **setting,
  }


def _plane_result(plane: Plane, gains: dict[tuple, Gain]) -> dict:
  cells = []
  for (value, u), gain in gains.items():
    cells.append({plane.field: value, "survival": u, **gain._asdict()})
  border = [[value, u] for value, u in diagram.border(plane, gains).items()]
  return {"cells": cells, "border": border}


def _methods_table(study, outcomes) -> str:
  rows = []
  for chain in study.table:
    of_chain = _outcomes_of(chain, outcomes)
    row = [_name(chain), f"{chain.correct:.2f}"]
    for method in METHODS:
      outcome = of_chain[method]
      row.append(f"{mean(outcome):.2f} ± {half(outcome):.2f}")
    rows.append(row)
  return _markdown(["setting", "c", *METHODS], rows)


def _borders_table(planes, gains) -> str:
  rows = []
  for plane in planes:
    entries = []
    for value, u in diagram.border(plane, gains[plane.name]).items():
      smallest = "none"
      if u is not None:
        smallest = f"{u:g}"
      entries.append(f"{_value(plane, value)}: {smallest}")
    rows.append([plane.name, "; ".join(entries)])
  return _markdown(["plane", "smallest u from which credit pays, by the second axis"], rows)


def _gains_table(study, plane, gains: dict[tuple, Gain]) -> str:
  header = [plane.name]
  header += [f"u = {u:g}" for u in study.survivals]
  rows = []
  for value in plane.values:
    row = [_value(plane, value)]
    row += [_gain(gains.get((value, u))) for u in study.survivals]
    rows.append(row)
  return _markdown(header, rows)


def _gain(gain: Gain | None) -> str:
  if gain is None:
    return ""
  points = 100 * gain.mean
  low = 100 * gain.low
  high = 100 * gain.high
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


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
