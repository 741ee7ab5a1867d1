"""How several processes stop after the same step."""

import threading

from synthjax import multihost


class AgreedStop:
  """Decides after which step a training stops that was asked to, without any exchange before that.

  Once one process is asked, each begins no further step and tells the others which one it began
  last; then all go on to the last of these. `agree` runs in a thread of its own, since the main
  thread may be waiting for a step that another process has yet to begin.
  """

  def __init__(self, start: int):
    self._begun = start
    self._last_step = -1  # read only after `_agreed`
    self._asked = False
    self._lock = threading.Lock()
    self._agreed = threading.Event()
    self._name = f"last step of the training that begins after step {start}"

  def agree(self) -> None:
    """Finds the last step together with the other processes."""
    # Under the lock: the main thread must not begin a step between the question and the answer.
    with self._lock:
      self._asked = True
      begun = self._begun
    self._last_step = max(multihost.gather(self._name, begun))
    self._agreed.set()

  def may_begin(self, step: int) -> bool:
    """Whether a step may begin; waits for the other processes where a stop was asked for."""
    with self._lock:
      if not self._asked:
        self._begun = step
        return True
    self._agreed.wait()
    return step <= self._last_step
