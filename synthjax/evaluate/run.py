"""Evaluating a policy: problems, prompts, responses, score."""

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
  """Answers the protocol's problems as the config says and scores the answers into the folder `out`. Returns the results.

  A model that is evaluated again, with other parameters, is not compiled again.

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
  """The same with an engine's answers to problems of the protocol's task.

  Raises:
    DataError: as `evaluate`.
  """
  cfg, protocol = experiment.evaluate, protocols.of(experiment)
  sampling = Sampling(cfg.max_new_tokens, cfg.temperature, stop=protocol.stop)
  requests = [
    Request(
      str(number), protocol.prompt(example), sampling=sampling, n=cfg.samples, seed=experiment.seed
    )
    for number, example in enumerate(examples)
  ]
  found = {result.id: result for result in engine.generate(requests)}
  answered = [
    Answered(
      example.id,
      example.question,
      example.answer,
      _responses(example, found[request.id]),
      example.group,
    )
    for example, request in zip(examples, requests)
  ]
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
  found = list(sources.of_sources([source(experiment)], experiment.data, experiment.world, "test"))
  for example in found:
    if not example.answer:
      raise files.DataError(
        f"test problem {example.id!r} has no answer to be compared with; give its row "
        "a field 'answer'"
      )
  return found


def fingerprint(experiment: schema.Experiment) -> list:
  """JSON that changes when the problems or the protocol do."""
  return [
    sources.fingerprint(source(experiment), experiment.data, experiment.world, "test"),
    protocols.of(experiment).record(),
  ]


def source(experiment: schema.Experiment) -> schema.Source:
  """Where the test problems of the experiment's protocol lie."""
  protocol, data = protocols.of(experiment), experiment.data
  return schema.Source(
    protocol.task,
    data.test_path if protocol.task == data.task else "",
    data.test_problems,
    data.traces,
  )


def golds(experiment: schema.Experiment) -> dict[str, Answered]:
  """Problem id -> problem without responses, for generations that come from elsewhere."""
  return {e.id: Answered(e.id, e.question, e.answer, (), e.group) for e in problems(experiment)}


def _responses(example: Example, result: Result) -> tuple[Response, ...]:
  if result.error:
    raise files.DataError(f"problem {example.id!r} cannot be asked: {result.error}")
  return tuple(Response(sample.text, sample.finish == "stop") for sample in result.samples)
