"""No policy is trained on the problems that it is evaluated on: stage `decontaminate` of recipes.

What the embedded worlds generate is divided by a hash of the problem: no problem is in two splits,
whatever seed and knobs. There, evaluation problems that compute the same as a training problem in
other words are counted.
"""

import collections
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from synthjax import files, progress, stages
from synthjax.config import schema
from synthjax.data import sources
from synthjax.data.formats import Example
from synthjax.evaluate import protocols
from synthjax.evaluate import run as evaluate_lib
from synthjax.records import Pair
from synthjax.verify import decontaminate
from synthjax.verify.decontaminate import Hit
from synthjax.worlds import shop

# How a training document may repeat an evaluation problem, in words.
_RULES = {
  "id": "their id",
  "exact": "their text",
  "contained": "a text that holds the other",
  "short": "the words of a short text",
}
_ASKED = " (as asked)"  # names an evaluation problem's text with its prompt's words around it


class Document(NamedTuple):
  """What is trained on, as far as it can repeat an evaluation problem."""

  name: str  # of this document alone
  id: str  # of its problem
  text: str


class Overlap(NamedTuple):
  """Training documents that repeat evaluation problems, as a search found them."""

  hits: list[Hit]  # documents that repeat an evaluation problem, one a document
  documents: int
  evaluated: int  # evaluation problems
  same_computation: int | None = None  # of the world's, those computed in training in other words

  def report(self) -> dict:
    """Counts for a manifest."""
    rules = collections.Counter(hit.rule for hit in self.hits)
    counts = {
      "documents": self.documents,
      "evaluation_problems": self.evaluated,
      "repeating": {rule: rules[rule] for rule in _RULES},
      "evaluation_problems_repeated": len({hit.evaluation for hit in self.hits}),
    }
    if self.same_computation is not None:
      counts["evaluation_problems_computed_in_training"] = self.same_computation
    return counts

  def describe(self, places: "Places") -> str:
    """The counts in words, and where the first repetition stands."""
    report, first = self.report(), self.hits[0]
    document = _at(first.candidate, places.documents)
    evaluation = _at(first.evaluation, places.evaluation)
    rules = [f"{n:,} by {_RULES[rule]}" for rule, n in report["repeating"].items() if n]
    return (
      f"{len(self.hits):,} of {self.documents:,} training documents repeat "
      f"{report['evaluation_problems_repeated']:,} of {self.evaluated:,} evaluation problems "
      f"({', '.join(rules)}; the first, {document}, repeats {evaluation})"
    )


class Places(NamedTuple):
  """Where repeating documents and the repeated problems stand: name -> file and row."""

  documents: Mapping[str, str]
  evaluation: Mapping[str, str]


def places(experiment: schema.Experiment, overlap: Overlap) -> Places:
  """Rows of the hits, in the training files of the config and in the evaluation's."""
  data = experiment.data
  train, test = sources.of_split(data, "train"), sources.of_split(data, "test")
  if data.task != "text":
    test.append(evaluate_lib.source(experiment))
  documents = {hit.candidate for hit in overlap.hits}
  evaluation = {hit.evaluation for hit in overlap.hits}
  return Places(
    documents=sources.places(documents, train, data, "train"),
    evaluation=sources.places(evaluation, test, data, "test"),
  )


def _at(name: str, places: Mapping[str, str]) -> str:
  if name in places:
    return f"{name!r} in {places[name]}"
  return repr(name)


def search(documents: Iterable[Document], evaluation: Sequence[Example]) -> Overlap:
  """The documents that repeat an evaluation problem, by id or by a rule of `decontaminate`.

  About 10,000 problems a second; 4 MB of running text a second.
  """
  ids = {example.id for example in evaluation}
  index = decontaminate.Index(_texts(evaluation))
  hits = []
  count = 0
  for document in documents:
    count += 1
    match = None
    if document.id in ids:
      match = document.id, "id"
    elif ids:
      match = index.match(document.text)
    if match:
      hits.append(Hit(document.name, match[0].removesuffix(_ASKED), match[1]))
  return Overlap(hits, count, len(evaluation))


def refuse(overlap: Overlap, policy: str, key: str, where: Callable[[Overlap], Places]) -> None:
  """Raises DataError where documents repeat evaluation problems and `data.overlap` is "error".

  Args:
    overlap: of the documents and the evaluation.
    policy: the value of `data.overlap`.
    key: of the config, for what is trained on.
    where: finds the rows.
  """
  if overlap.hits and policy == "error":
    raise files.DataError(
      f"{overlap.describe(where(overlap))}; train on others ({key}), or set config.data.overlap to "
      "'drop' to leave these out or to 'allow' to train on them"
    )


def of_documents(experiment: schema.Experiment, workdir: pathlib.Path) -> frozenset[str]:
  """Ids of the training documents that recipe `finetune` leaves out.

  Raises:
    DataError: as `refuse`; a missing file, by its key; two problems with one id.
  """
  data, world = experiment.data, experiment.world
  parts = sources.of_split(data, "train")
  evaluation = evaluated(experiment)

  def find() -> Overlap:
    if {source.task for source in parts} == {"world"} and _asks_the_world(experiment):
      problems = [p for source in parts for p in sources.world_problems(source, world, "train")]
      return of_the_world([problem.question for problem in problems], evaluation)
    documents = map(document, sources.examples(data, world, "train"))
    return search(documents, _searched_for(data, evaluation))

  search_documents = _Search(
    inputs=[sources.fingerprint(source, data, world, "train") for source in parts],
    find=find,
    key="config.data.mixture" if data.mixture else "config.data.train_path",
    where=functools.partial(places, experiment),
  )
  return _stage(experiment, workdir, search_documents)


def of_pairs(
  experiment: schema.Experiment, workdir: pathlib.Path, pairs: Mapping[int, Pair]
) -> list[int]:
  """Numbers of the pairs about evaluation problems.

  Args:
    experiment: the config.
    workdir: of the run.
    pairs: number -> pair.

  Raises:
    DataError: as `refuse`.
  """

  def find() -> Overlap:
    documents = (Document(str(n), pair.problem_id, pair.prefix) for n, pair in pairs.items())
    return search(documents, _searched_for(experiment.data, evaluated(experiment)))

  def where(overlap: Overlap) -> Places:
    rows = {}
    for hit in overlap.hits:
      rows[hit.candidate] = f"{experiment.objective.pairs}, row {hit.candidate}"
    return places(experiment, overlap)._replace(documents=rows)

  search_pairs = _Search(
    inputs=[files.file_hash(experiment.objective.pairs)],
    find=find,
    key="config.objective.pairs",
    where=where,
  )
  left_out = _stage(experiment, workdir, search_pairs)
  return [int(name) for name in left_out]


def evaluated(experiment: schema.Experiment) -> list[Example]:
  """The problems of the evaluation and the documents of the held-out loss, each once."""
  examples = list(sources.examples(experiment.data, experiment.world, "test"))
  if experiment.data.task != "text":
    examples += evaluate_lib.problems(experiment)
  distinct = {}
  for example in examples:
    distinct[example.id, sources.asked(example)] = example
  return list(distinct.values())


def _searched_for(data: schema.Data, evaluation: Sequence[Example]) -> Sequence[Example]:
  """Nothing is searched for where repetitions are allowed."""
  if data.overlap == "allow":
    return ()
  return evaluation


def of_the_world(questions: Sequence[str], evaluation: Sequence[Example]) -> Overlap:
  """No question of the world is in two splits; counts what is computed in both."""
  computed = {shop.computation(question) for question in questions}
  same = sum(shop.computation(example.question) in computed for example in evaluation)
  return Overlap([], len(questions), len(evaluation), same)


def document(example: Example) -> Document:
  """An example as it is searched: by its bare problem where that is known."""
  return Document(example.id, example.id, example.question or sources.asked(example))


def _asks_the_world(experiment) -> bool:
  return experiment.data.task == "world" and protocols.of(experiment).task == "world"


def _texts(evaluation) -> dict[str, str]:
  """Every way in which an evaluation problem may stand in a document."""
  bare = {example.id: example.question or sources.asked(example) for example in evaluation}
  asked = {f"{example.id}{_ASKED}": example.inputs for example in evaluation if example.question}
  return {**bare, **asked}


class _Search(NamedTuple):
  """A search for documents that repeat evaluation problems."""

  inputs: list  # what it depends on beside the evaluation, JSON
  find: Callable[[], Overlap]
  key: str  # of the config, for what is trained on
  where: Callable[[Overlap], Places]


def _stage(experiment: schema.Experiment, workdir: pathlib.Path, search: _Search) -> frozenset[str]:
  """Names of the documents that are left out.

  Counts are in the manifest of WORKDIR/decontaminate, hits beside it.
  """
  data, folder = experiment.data, workdir / "decontaminate"
  test = sources.fingerprint(sources.of_split(data, "test")[0], data, experiment.world, "test")
  asked = []
  if data.task != "text":
    asked = evaluate_lib.fingerprint(experiment)[0]

  def work(folder: pathlib.Path) -> dict:
    overlap = search.find()
    refuse(overlap, data.overlap, search.key, search.where)
    rows_of = search.where(overlap)
    hits = []
    for hit in overlap.hits:
      places_of_hit = {
        "candidate_place": rows_of.documents.get(hit.candidate, ""),
        "evaluation_place": rows_of.evaluation.get(hit.evaluation, ""),
      }
      hits.append({**hit._asdict(), **places_of_hit})
    files.write_jsonl(folder / "hits.jsonl", hits)
    if overlap.hits:
      progress.say(
        f"{overlap.describe(rows_of)}; they are left out, and listed in {folder / 'hits.jsonl'}"
      )
    return overlap.report()

  stages.run(folder, [data.overlap, search.inputs, test, asked], work, say=quiet)
  return frozenset(row["candidate"] for row in files.read_jsonl(folder / "hits.jsonl"))


def quiet(line: str) -> None:
  """A stage that changes nothing is not worth a line."""
