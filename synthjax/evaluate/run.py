"""Evaluating a policy: problems, prompts, responses, score."""

import pathlib

from synthjax import files, schema
from synthjax.data import sources
from synthjax.data.tokenizers import Tokenizer
from synthjax.evaluate import decode, protocols, score
from synthjax.evaluate.score import Answered, Response
from synthjax.model.transformer import Params, Transformer


def evaluate(model: Transformer, params: Params, tokenizer: Tokenizer, experiment: schema.Experiment, out: files.Path) -> dict:
  """Answers the protocol's problems as the config says and scores the answers into the folder `out`. Returns the results."""
  cfg, protocol = experiment.evaluate, protocols.of(experiment)
  examples = problems(experiment)
  prompts = [tokenizer.encode(protocol.prompt(example)) for example in examples for _ in range(cfg.samples)]
  how = decode.Decoding(cfg.max_new_tokens, cfg.temperature, experiment.seed, cfg.batch_size)
  decoded = iter(decode.decode(model, params, prompts, tokenizer, how))
  answered = [Answered(example.id, example.question, example.answer,
                       tuple(_response(tokenizer, *next(decoded), protocol.stop) for _ in range(cfg.samples)), example.group)
              for example in examples]
  decoding = {"temperature": cfg.temperature, "samples": cfg.samples, "max_new_tokens": cfg.max_new_tokens, "seed": experiment.seed}
  return score.score(answered, protocol, cfg.policy, cfg.pass_at, pathlib.Path(out), decoding)


def problems(experiment: schema.Experiment) -> list[sources.Example]:
  """The test problems of the experiment's protocol."""
  source, data = _source(experiment), experiment.data
  found = [example for shard in sources.shards(source, data, "test") for example in sources.read(source, experiment.world, "test", shard)]
  return [example for example in found if not example.drop]


def fingerprint(experiment: schema.Experiment) -> list:
  """JSON that changes when the problems or the protocol do."""
  return [sources.fingerprint(_source(experiment), experiment.data, experiment.world, "test"), protocols.of(experiment).record()]


def _source(experiment) -> schema.Source:
  protocol, data = protocols.of(experiment), experiment.data
  return schema.Source(protocol.task, data.test_path if protocol.task == data.task else "", data.test_problems, data.traces)


def golds(experiment: schema.Experiment) -> dict[str, Answered]:
  """Problem id -> problem without responses, for generations that come from elsewhere."""
  return {e.id: Answered(e.id, e.question, e.answer, (), e.group) for e in problems(experiment)}


def _response(tokenizer, ids, ended, stop) -> Response:
  """Text up to the first stop string."""
  text = tokenizer.decode(ids)
  ends = [text.find(mark) for mark in stop if mark in text]
  return Response(text[:min(ends)], True) if ends else Response(text, ended)
