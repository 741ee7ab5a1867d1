"""One command a verb: `python -m synthjax VERB --config configs/x.py[:smoke] [--config.key=value]`.

The verbs are in `cli/`.
"""

import os
import sys
import traceback

from synthjax import cli


def main(arguments: list[str] | None = None) -> int:
  """Runs a verb.

  SIGTERM and Ctrl-C end the process with 143 and 130, see `stopping.py`.

  Returns:
    The exit code: 0, or 1 for a run that failed with a known error. An incorrect command line ends
    the process with 2.
  """
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  parser = cli.make_parser()
  overrides, rest = cli.take_overrides(parser, arguments)
  parsed = parser.parse_args(rest)
  from synthjax import stopping
  from synthjax.errors import Error, of_the_disk

  with stopping.handled():
    try:
      code = parsed.verb(parsed, overrides)
      sys.stdout.flush()
    except BrokenPipeError:
      # The reader of our output, such as `head`, has enough. Python would flush again at its end.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 0
    except Error as e:
      return _fail(str(e))
    except stopping.Stopped as e:
      _fail(str(e), e.exit_code)
      sys.stdout.flush()
      # A usual exit would wait for threads that are in the middle of their work.
      os._exit(e.exit_code)
    except Exception as e:
      if message := of_the_disk(e):
        return _fail(message)
      if _connected():
        traceback.print_exc()
        _end_all(f"{type(e).__name__}: {e}", 1)
      raise
    if _connected():
      from synthjax import multihost

      multihost.finish()
    return code


def _fail(message: str, exit_code: int = 1) -> int:
  print(f"synthjax: {message}", file=sys.stderr, flush=True)
  if _connected():
    _end_all(message, exit_code)
  return exit_code


def _connected() -> bool:
  """Whether this is one of several processes; without an import that `--help` would wait for."""
  multihost = sys.modules.get("synthjax.multihost")
  return multihost is not None and multihost.share()[1] > 1


def _end_all(message: str, exit_code: int) -> None:
  """Ends this process and with it the others that take part in the run."""
  from synthjax import multihost

  multihost.leave(message, exit_code)


if __name__ == "__main__":
  sys.exit(main())
