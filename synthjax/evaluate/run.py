"""Evaluates a policy: problems become prompts, prompts get responses, responses a score."""

import pathlib
from collections.abc import Sequence

from synthjax import files
from synthjax.config import schema
from synthjax.config.credit import Sampling
from synthjax.data import sources
from synthjax.data.formats import Example
from synthjax.data.tokenizers import Tokenizer
from synthjax.evaluate import protocols, score
from synthjax.evaluate.score import Answered, Response
from synthjax.model.transformer import Params, Transformer
from synthjax.rollout.engine import JaxEngine
from synthjax.rollout.requests import Engine, Request, Result


def evaluate(
  model: Transformer,
  params: Params,
  tokenizer: Tokenizer,
  experiment: schema.Experiment,
  out: files.Path,
) -> dict:
  """Scores a policy on the problems of the config's protocol.

  A model that is evaluated again, with other parameters, is not compiled again.

  Args:
    model: of the policy.
    params: of the policy.
    tokenizer: of the policy.
    experiment: names the protocol and how responses are decoded.
    out: folder for the responses and results.

  Returns:
    The results, see `score.score`.

  Raises:
    DataError: a problem cannot be asked, for example because its prompt is too long.
  """
  engine = JaxEngine(model, params, tokenizer, slots=experiment.evaluate.slots)
  return answer(engine, problems(experiment), experiment, pathlib.Path(out))


def answer(
  engine: Engine,
  examples: Sequence[Example],
  experiment: schema.Experiment,
  out: pathlib.Path,
) -> dict:
  """As `evaluate`, with an engine's responses to given problems of the protocol's task."""
  cfg, protocol = experiment.evaluate, protocols.of(experiment)
  sampling = Sampling(cfg.max_new_tokens, cfg.temperature, stop=protocol.stop)
  requests = []
  for number, example in enumerate(examples):
    request = Request(
      id=str(number),
      prompt=protocol.prompt(example),
      sampling=sampling,
      n=cfg.samples,
      seed=experiment.seed,
    )
    requests.append(request)
  results = {result.id: result for result in engine.generate(requests)}
  answered = []
  for example, request in zip(examples, requests):
    answered.append(_problem(example, _responses(example, results[request.id])))
  decoding = {
    "temperature": cfg.temperature,
    "samples": cfg.samples,
    "max_new_tokens": cfg.max_new_tokens,
    "seed": experiment.seed,
  }
  return score.score(answered, protocol, cfg.policy, cfg.pass_at, out, decoding)


def problems(experiment: schema.Experiment) -> list[Example]:
  """The test problems of the experiment's protocol.

  Raises:
    DataError: a problem without an answer; two problems with one id; a missing or malformed file.
  """
  tests = [source(experiment)]
  examples = list(sources.of_sources(tests, experiment.data, experiment.world, "test"))
  for example in examples:
    if not example.answer:
      raise files.DataError(
        f"test problem {example.id!r} has no answer to be compared with; give its row "
        "a field 'answer'"
      )
  return examples


def fingerprint(experiment: schema.Experiment) -> list:
  """JSON that changes when the problems or the protocol do."""
  return [
    sources.fingerprint(source(experiment), experiment.data, experiment.world, "test"),
    protocols.of(experiment).record(),
  ]


def source(experiment: schema.Experiment) -> schema.Source:
  """Where the test problems of the experiment's protocol lie."""
  protocol, data = protocols.of(experiment), experiment.data
  # The config's path holds problems of its own task; those of another one have a default place.
  path = ""
  if protocol.task == data.task:
    path = data.test_path
  return schema.Source(protocol.task, path, data.test_problems, data.traces)


def golds(experiment: schema.Experiment) -> dict[str, Answered]:
  """Problem id -> problem without responses, for completions that come from elsewhere."""
  return {example.id: _problem(example, ()) for example in problems(experiment)}


def _problem(example: Example, responses: tuple[Response, ...]) -> Answered:
  return Answered(
    id=example.id,
    question=example.question,
    gold=example.answer,
    responses=responses,
    group=example.group,
  )


def _responses(example: Example, result: Result) -> tuple[Response, ...]:
  if result.error:
    raise files.DataError(f"problem {example.id!r} cannot be asked: {result.error}")
  return tuple(Response(sample.text, sample.finish == "stop") for sample in result.samples)
