"""One cell of study A: N problems and a seed. Each method is a stage in a folder of its own, skipped when it is finished.

What the stages make is text and checkpoints on disk; what goes from one to the next in memory is read back from there.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthjax import files, progress, records, schema, stages
from synthjax.data import sources, steps, trees
from synthjax.data.documents import TokenDocuments
from synthjax.data.sources import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.evaluate import protocols, score
from synthjax.evaluate.score import Answered, Response
from synthjax.recipes import finetune
from synthjax.records import Pair, StepValue, Trace, Verdict
from synthjax.rollout import journal, pairs, values
from synthjax.rollout.draw import Drawn, Judge, Splitting, draw
from synthjax.rollout.engine import JaxEngine
from synthjax.rollout.pairing import Pairing
from synthjax.rollout.pairs import Sampled, Samples
from synthjax.rollout.requests import Sampling
from synthjax.train import policies, preference
from synthjax.verify import extract, pool, sets
from synthjax.verify.policy import POLICIES

_RULES = {"world": "world", "math": "math", "math500": "math"}  # of steps, by task; others have a step a line


class Policy(NamedTuple):
  """A trained policy and what it took, with the stages that it starts from."""

  name: str
  checkpoints: str  # folder
  trained: int  # target tokens
  sampled: int  # tokens

  @property
  def identity(self) -> str:
    return files.value_hash(finetune.listing(pathlib.Path(self.checkpoints)))


class Solution(NamedTuple):
  """A whole response to train on, in tokens: the teacher's, or as it was sampled."""

  problem_id: str
  ids: tuple[int, ...]  # without end-of-text


class TooWeakError(RuntimeError):
  """A policy whose samples are right too seldom for step values to mean anything."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """N problems and a seed.

  Attributes:
    experiment: with the cell's seed and world.
    folder: of all its stages.
    tokenizer: of every policy.
    problems: N of them, with teacher traces.
    judge: of responses to them.
  """

  experiment: schema.Experiment
  folder: pathlib.Path
  tokenizer: Tokenizer
  problems: tuple[Example, ...]
  judge: Judge

  @functools.cached_property
  def prompts(self) -> dict[str, tuple[int, ...]]:
    """Problem id -> ids of its prompt."""
    return {p.id: tuple(self.tokenizer.encode(p.inputs)) for p in self.problems}

  @property
  def study(self) -> schema.Study:
    return self.experiment.study

  def stage(self, name: str, inputs: list, work: Callable[[pathlib.Path], dict]) -> dict:
    """A stage of the cell; its config is what it is told here."""
    key = [name, self.experiment.seed, dataclasses.asdict(self.experiment.model), *inputs]
    return stages.run(self.folder / name, json.loads(json.dumps(key)), work, say=_quiet)

  def teacher(self) -> list[Solution]:
    """The teacher's solutions whose answers are right; the others are counted."""
    verdicts = self.judge.pool.compare_many([(p.answer, extract.extract(p.targets, self.judge.mode)) for p in self.problems])
    counts = {"problems": len(self.problems), **collections.Counter(verdict.value for verdict in verdicts)}

    def work(folder: pathlib.Path) -> dict:
      files.write_jsonl(folder / "verdicts.jsonl", ({"id": p.id, **v.to_json()} for p, v in zip(self.problems, verdicts)))
      return counts

    self.stage("teacher", [files.value_hash([[p.id, p.inputs, p.targets, p.answer] for p in self.problems])], work)
    return [Solution(p.id, tuple(self.tokenizer.encode(p.targets))) for p, verdict in zip(self.problems, verdicts) if verdict.reward]

  def by_likelihood(self, name: str, solutions: Sequence[Solution], cfg: schema.Train, start: Policy | None, cost: "Cost") -> Policy:
    """Trains on whole solutions, from a policy or from where the config says."""
    init = start.checkpoints if start else self.experiment.train.init
    experiment = dataclasses.replace(self.experiment, train=dataclasses.replace(cfg, init=init))
    identity = start.identity if start else init and files.value_hash(finetune.listing(pathlib.Path(init)))

    def work(folder: pathlib.Path) -> dict:
      documents = self._documents(solutions)
      result = policies.on_documents(experiment, documents, folder, (self.tokenizer.size, self.tokenizer.fingerprint))
      return {**dataclasses.asdict(result), "solutions": len(solutions), "too_long": len(solutions) - len(documents)}

    inputs = [_decisive(cfg), identity, files.value_hash(solutions), self.experiment.data.row_length]
    found = self.stage(name, inputs, work)
    return Policy(name, str(self.folder / name / "checkpoints"), cost.trained + found["tokens"], cost.sampled)

  def _documents(self, solutions: Sequence[Solution]) -> TokenDocuments:
    """Those that fit a row."""
    made = [(self.prompts[s.problem_id], (*s.ids, self.tokenizer.eos_id)) for s in solutions]
    return TokenDocuments([(prompt, ids) for prompt, ids in made if len(prompt) + len(ids) <= self.experiment.data.row_length])

  def sample(self, policy: Policy, n: int) -> tuple[list[Drawn], int]:
    """(n traces of every problem, tokens sampled)."""
    how, splitting = self.study.sampling, Splitting(_RULES.get(self.experiment.data.task, "gsm8k"), self.study.step_limit)
    name = f"draw{n}_{policy.name}"

    def work(folder: pathlib.Path) -> dict:
      generate = self._generate(policy, folder)
      drawn = list(draw(self.problems, generate, self.judge, how, n, self.experiment.seed, splitting))
      order = {p.id: i for i, p in enumerate(self.problems)}
      drawn.sort(key=lambda d: order[d.problem_id])
      records.write(folder / "drawn.jsonl", drawn)
      counts = collections.Counter(d.verdict.value for d in drawn)
      return {"traces": len(drawn), **counts, "reasons": dict(collections.Counter(d.verdict.reason for d in drawn if d.verdict.reason)),
              "truncated": sum(not d.complete for d in drawn), "distinct": len({(d.problem_id, d.text) for d in drawn}),
              "tokens": sum(sum(map(len, d.steps)) + d.complete for d in drawn), "accuracy": counts["equal"] / len(drawn)}

    found = self.stage(name, [policy.identity, how.to_json(), n, dataclasses.asdict(splitting), self._problems_hash()], work)
    return list(records.read(Drawn, self.folder / name / "drawn.jsonl")), found["tokens"]

  def _problems_hash(self) -> str:
    return files.value_hash([[p.id, p.inputs, p.answer] for p in self.problems])

  def _generate(self, policy: Policy, folder: pathlib.Path):
    """Samples of a policy, kept in a journal: a killed stage goes on where it was."""
    engine = engine_of(self.experiment, self.tokenizer, policy.checkpoints, policy.identity)
    return functools.partial(journal.generate, engine, path=folder / "journal.jsonl")

  def right(self, drawn: Sequence[Drawn], most: int) -> list[Solution]:
    """Distinct right traces, at most so many a problem."""
    whole = [d for d in drawn if d.complete]
    traces = [Trace(d.problem_id, d.text, metadata={"number": i}) for i, d in enumerate(whole)]
    taken: collections.Counter[str] = collections.Counter()
    kept = []
    for trace in sets.build(traces, [d.verdict for d in whole], near=False).positive:
      taken[trace.problem_id] += 1
      if taken[trace.problem_id] <= most:
        kept.append(Solution(trace.problem_id, sum(whole[trace.metadata["number"]].steps, ())))
    return kept

  def check(self, drawn: Sequence[Drawn], policy: Policy) -> None:
    """Raises TooWeakError where pits would be noise."""
    accuracy = sum(d.verdict.reward for d in drawn) / len(drawn)
    if accuracy < self.study.least_accuracy:
      raise TooWeakError(f"{self.folder.name}: {100 * accuracy:.1f} % of the samples of {policy.name!r} are right; below "
                         f"{100 * self.study.least_accuracy:.0f} % pits are noise. Train {policy.name!r} on more problems or for longer, or "
                         "lower config.study.least_accuracy and expect nothing of the step arms")

  def value(self, policy: Policy, drawn: Sequence[Drawn], right_too: bool) -> tuple[list[Samples], int]:
    """(samples with step values on the wrong traces, and on right ones where asked; tokens that the rollouts took)."""
    cfg = self.study.values
    wanted, wrong = [], collections.Counter[str]()
    for d in drawn:
      reward = _reward(d.verdict)
      wrong[d.problem_id] += reward == 0
      if d.steps and ((reward == 0 and wrong[d.problem_id] <= self.study.wrong) or (reward == 1 and right_too)):
        wanted.append(d)
    token_traces = [values.TokenTrace(d.problem_id, self.prompts[d.problem_id], d.steps, d.complete, _reward(d.verdict) if d.complete else None)
                    for d in wanted]
    name = f"values_{policy.name}" + ("_all" if right_too else "")

    def work(folder: pathlib.Path) -> dict:
      found = values.estimate(token_traces, self._generate(policy, folder), self.judge, cfg)
      records.write(folder / "values.jsonl", [row for rows in found.values for row in rows])
      continuations = [{"trace": i, "step": step, "samples": [list(s.ids) for s in kept]}
                       for i, right in enumerate(found.right) for step, kept in right.items()]
      files.write_jsonl(folder / "continuations.jsonl", continuations)
      return {**found.spent.to_json(), "traces": len(wanted), "pits": dict(collections.Counter(str(pit) for pit in found.pits))}

    inputs = [policy.identity, cfg.to_json(), files.value_hash([t.to_json() for t in token_traces])]
    spent = self.stage(name, inputs, work)
    return self._samples(drawn, wanted, self.folder / name), spent.get("tokens", 0)

  def _samples(self, drawn, wanted, folder) -> list[Samples]:
    """Drawn traces by problem, with what `values` wrote about them."""
    q: dict[int, dict[int, float | None]] = collections.defaultdict(dict)
    for row in records.read(StepValue, folder / "values.jsonl"):
      q[row.trace][row.step] = row.q
    after: dict[int, dict[int, list[Sampled]]] = collections.defaultdict(dict)
    for row in files.read_jsonl(folder / "continuations.jsonl"):
      after[row["trace"]][row["step"]] = [self._continuation(ids) for ids in row["samples"]]
    number = {id(d): i for i, d in enumerate(wanted)}
    grouped: dict[str, list[Sampled]] = collections.defaultdict(list)
    for d in drawn:
      i = number.get(id(d), -1)
      known = tuple(q[i].get(step) for step in range(len(d.steps) + 1)) if i in q else ()
      grouped[d.problem_id].append(Sampled(d.steps, d.verdict, d.complete, known, after.get(i, {})))
    return [Samples(name, self.prompts[name], tuple(traces)) for name, traces in grouped.items()]

  def unvalued(self, drawn: Sequence[Drawn]) -> list[Samples]:
    """Drawn traces by problem."""
    grouped: dict[str, list[Sampled]] = collections.defaultdict(list)
    for d in drawn:
      grouped[d.problem_id].append(Sampled(d.steps, d.verdict, d.complete))
    return [Samples(name, self.prompts[name], tuple(traces)) for name, traces in grouped.items()]

  def merged(self, samples: Sequence[Samples]) -> list[trees.Node]:
    """The valued traces of every problem as one tree."""
    valued = [(of, [trace for trace in of.traces if trace.advantages() is not None and trace.steps]) for of in samples]
    return [pairs.tree(of.prompt_ids, traces, self.tokenizer.eos_id) for of, traces in valued if traces]

  def _continuation(self, ids: list[int]) -> Sampled:
    spans = steps.spans(self.tokenizer.decode(ids), _RULES.get(self.experiment.data.task, "gsm8k"), self.study.step_limit)
    return Sampled(tuple(tuple(step) for step in steps.token_spans(ids, spans, self.tokenizer)), Verdict("equal"), True)

  def pairs(self, name: str, samples: Sequence[Samples], pairing: Pairing) -> list[Pair]:
    """Pairs of one mode; what was dropped is in the stage's manifest."""
    built = pairs.build(samples, dataclasses.replace(pairing, seed=self.experiment.seed), self.tokenizer)

    def work(folder: pathlib.Path) -> dict:
      records.write(folder / "pairs.jsonl", built.pairs)
      return built.report

    self.stage(f"pairs_{name}", [dataclasses.asdict(pairing), files.value_hash([p.to_json() for p in built.pairs])], work)
    return built.pairs

  def by_preference(self, name: str, roots: Sequence[trees.Node], objective: schema.Objective, start: Policy, cost: "Cost",
                    splittable: bool) -> Policy:
    """Trains on trees from `start`, which is the reference."""
    if not roots:
      progress.say(f"{self.folder.name}: {start.name!r} gave {name!r} nothing to learn from; the arm stays at {start.name!r}")
      return Policy(name, start.checkpoints, cost.trained, cost.sampled)
    cfg, length = dataclasses.replace(self.study.preference, init=start.checkpoints), self.experiment.data.row_length
    experiment = dataclasses.replace(self.experiment, train=cfg, objective=objective)
    content = files.value_hash([_plain(root) for root in roots])

    def work(folder: pathlib.Path) -> dict:
      plan = trees.plan(roots, length, splittable)
      if not plan.rows:
        raise files.DataError(f"{folder}: none of {len(roots)} trees fits a row of data.row_length={length}; make the rows longer")
      model, params = finetune.load_policy(experiment, self.tokenizer, start.checkpoints)
      made_of = {"checkpoint": start.identity, "tokenizer": self.tokenizer.fingerprint, "data": content}
      reference = preference.reference_sums(model, params, plan.rows, cfg.batch_size, length, folder / "reference", made_of)
      result = policies.on_trees(experiment, plan, reference, folder, (self.tokenizer.size, self.tokenizer.fingerprint))
      return {**dataclasses.asdict(result), "trees": len(roots), "too_long": len(plan.too_long), "split": plan.split}

    found = self.stage(name, [_decisive(cfg), dataclasses.asdict(objective), start.identity, content, length], work)
    return Policy(name, str(self.folder / name / "checkpoints"), cost.trained + found["tokens"], cost.sampled)

  def evaluate(self, policy: Policy, test: Sequence[Example]) -> np.ndarray:
    """For every test problem whether the policy's greedy answer is right."""
    protocol, cfg = protocols.of(self.experiment), self.experiment.evaluate

    def work(folder: pathlib.Path) -> dict:
      engine = engine_of(self.experiment, self.tokenizer, policy.checkpoints, policy.identity)
      how = Sampling(max_tokens=cfg.max_new_tokens, temperature=0.0, stop=protocol.stop)
      given = [Example(p.id, protocol.prompt(p), "", p.answer, "", p.question, p.group) for p in test]
      judge = Judge({p.id: p.answer for p in test}, self.judge.mode, self.tokenizer, self.judge.pool)
      found = {d.problem_id: d for d in draw(given, engine.generate, judge, how, 1, 0, Splitting("gsm8k", 1))}
      answered = [Answered(p.id, p.question, p.answer, (Response(found[p.id].text, found[p.id].complete),), p.group) for p in test]
      return score.score(answered, protocol, cfg.policy, (), folder, {"temperature": 0, "max_new_tokens": cfg.max_new_tokens})

    name = f"evaluate_{self.study.split}_{policy.name}"
    self.stage(name, [policy.identity, dataclasses.asdict(cfg), files.value_hash([[p.id, p.inputs, p.answer] for p in test])], work)
    shares = score.shares(self.folder / name / "responses.jsonl")
    return np.array([shares[p.id] for p in test])


class Cost(NamedTuple):
  """What a policy took before its own training: target tokens trained, tokens sampled."""

  trained: int = 0
  sampled: int = 0


def open_cell(job: finetune.Job, tokenizer: Tokenizer, count: int, seed: int) -> Cell:
  """The cell of `count` problems and a seed: every seed has its own problems, and a smaller cell's are the first of a larger one's."""
  experiment = dataclasses.replace(job.experiment, seed=job.experiment.seed + seed,
                                   world=dataclasses.replace(job.experiment.world, seed=job.experiment.world.seed + seed))
  problems = tuple(_training(experiment, count))
  if len(problems) < count:
    raise files.DataError(f"config.study.problems asks for {count} problems; {experiment.data.task} has {len(problems)} for training")
  judge = Judge({p.id: p.answer for p in problems}, protocols.of(experiment).mode, tokenizer, pool.shared(POLICIES[experiment.evaluate.policy]))
  return Cell(experiment, job.workdir / f"n{count:05}_s{seed}", tokenizer, problems, judge)


def _training(experiment: schema.Experiment, count: int) -> Iterator[Example]:
  data = experiment.data
  if data.task == "world":
    yield from sources.examples(dataclasses.replace(data, train_problems=count), experiment.world, "train")
    return
  training = _divided(experiment)[0]
  for i in np.random.default_rng(experiment.seed).permutation(len(training))[:count]:
    yield training[i]


def test_problems(experiment: schema.Experiment) -> list[Example]:
  """The problems that arms are evaluated on: those of the test split, or development problems that no arm is trained on."""
  data, count = experiment.data, experiment.data.test_problems
  if experiment.study.split == "dev" and data.task != "world":
    return _divided(experiment)[1][:count or None]
  return list(sources.examples(data, experiment.world, experiment.study.split))


def _divided(experiment: schema.Experiment) -> tuple[list[Example], list[Example]]:
  """(training, development) problems of a task in files: a tenth, by the hash of the question, is for development."""
  parts: tuple[list[Example], list[Example]] = ([], [])
  for example in sources.examples(experiment.data, experiment.world, "train"):
    parts[int(files.value_hash(example.question)[:8], 16) % 10 == 0].append(example)
  return parts


_engines: dict[str, JaxEngine] = {}


def engine_of(experiment: schema.Experiment, tokenizer: Tokenizer, checkpoints: str, identity: str) -> JaxEngine:
  """One engine for all policies of a study: they have one shape, and new weights compile nothing."""
  model, params = finetune.load_policy(experiment, tokenizer, checkpoints)
  key = files.value_hash([dataclasses.asdict(model.cfg), tokenizer.fingerprint])
  if key not in _engines:
    _engines[key] = JaxEngine(model, params, tokenizer)
  _engines[key].load(params, identity)
  return _engines[key]


def _reward(verdict: Verdict) -> int | None:
  """As `pairs.Sampled.reward`: no answer is a wrong one."""
  return verdict.reward if verdict.value != "undecided" or verdict.reason == "no-answer" else None


def _decisive(cfg: schema.Train) -> dict:
  return {k: v for k, v in dataclasses.asdict(cfg).items() if k not in finetune.BY_THE_WAY}


def _plain(node: trees.Node) -> list:
  return [list(node.tokens), node.side, node.weight, node.advantage, [_plain(child) for child in node.children]]


def _quiet(line: str) -> None:
  """Stages of a cell are many: only those that were left unfinished or begin again are shown."""
  if "previous" in line or "goes on" in line:
    progress.say(line)
