"""The phase diagram of credit assignment: where does it pay to know which step was wrong?

On tabular policies, exactly. Problems are chains of decisions; a reference policy's traces of them
are given to methods that see outcomes of whole traces alone (RFT, DPO, RPO), to the controls of the
pairs (chosen_only, dpo_fresh) and to methods that assign credit to steps (branch, step, weighted,
AWR). Each is tuned alike in every cell; its success on new problems is computed, not sampled. The
gain of credit over the best control is drawn over the rate at which wrong steps survive and one
other axis at a time.
"""

import dataclasses
import json

from synthjax import files, progress
from synthjax.credit_phase import diagram, figure, tables, tuning
from synthjax.credit_phase.diagram import Gain, PhaseCell
from synthjax.credit_phase.tuning import ChosenSetting, Outcome
from synthjax.job import Job


def run(job: Job) -> dict:
  """Fills the cells that `cells.jsonl` lacks; writes results.json, table.md and the figure."""
  study = job.experiment.credit_phase
  files.write_json(job.workdir / "config.json", dataclasses.asdict(job.experiment))
  planes = diagram.planes(study)
  with files.Journal(job.workdir / "cells.jsonl", progress.say) as journal:
    outcomes = _outcomes(job, _wanted(study, planes), journal)
  gains = {}
  for plane in planes:
    gains[plane.name] = {at: _gain(cell, outcomes) for at, cell in plane.cells.items()}
  text = tables.page(study, planes, gains, outcomes)
  with files.replacing(job.workdir / "table.md") as f:
    f.write(text)
  drawn = figure.draw(study, planes, gains, job.workdir / "credit_phase")
  result = tables.results(study, planes, gains, outcomes)
  files.write_json(job.workdir / "results.json", result)
  progress.say(f"{text}\neverything is in {job.workdir}: results.json, table.md, {drawn[0].name}")
  return result


def _wanted(study, planes) -> list[tuple]:
  """Every (chain, methods) of the table and the planes, once, in their order."""
  cells = [PhaseCell(chain, equal_sampling=False) for chain in study.table]
  for plane in planes:
    cells += plane.cells.values()
  wanted: dict[tuple, None] = {}
  for cell in cells:
    wanted |= dict.fromkeys(diagram.parts(cell))
  return list(wanted)


def _outcomes(
  job: Job, wanted: list[tuple], journal: files.Journal
) -> dict[tuple, dict[str, Outcome]]:
  """(chain, methods) -> outcomes, computed where the journal has none with these settings."""
  study, seed = job.experiment.credit_phase, job.experiment.seed
  known = {row["key"]: row["outcomes"] for row in journal.rows}
  by_setting = {}
  with progress.bar("credit_phase", len(wanted), "settings") as advance:
    for chain, names in wanted:
      inputs = [dataclasses.asdict(chain), names, dataclasses.asdict(study.tuning), seed]
      # As the journal has it: JSON knows no tuples.
      key = files.value_hash(json.loads(json.dumps(inputs)))
      if key not in known:
        outcomes = tuning.outcomes(chain, names, study.tuning, seed)
        known[key] = {name: [list(o.chosen), o.success_R] for name, o in outcomes.items()}
        journal.append({"key": key, "chain": dataclasses.asdict(chain), "outcomes": known[key]})
      by_setting[chain, names] = _of_json(known[key])
      advance(1)
  return by_setting


def _of_json(rows: dict) -> dict[str, Outcome]:
  outcomes = {}
  for name, (chosen, success_R) in rows.items():
    outcomes[name] = Outcome(ChosenSetting(*chosen), success_R)
  return outcomes


def _gain(cell: PhaseCell, outcomes) -> Gain:
  return diagram.gain([outcomes[part] for part in diagram.parts(cell)])
