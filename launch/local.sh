#!/usr/bin/env bash
# Several processes on this machine, as a rehearsal of a pod:
#   launch/local.sh 2 run --config configs/world_sft.py:smoke --workdir runs/two
# DEVICES=2 gives every process that many simulated CPU devices.
# Ctrl-C or SIGTERM reaches all of them; the exit code is the first one that is not 0.
set -euo pipefail
processes=$1
shift
export SYNTHJAX_COORDINATOR=${SYNTHJAX_COORDINATOR:-127.0.0.1:9911} SYNTHJAX_PROCESSES=$processes
if [ -n "${DEVICES:-}" ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi
jobs=()
for process in $(seq 0 $((processes - 1))); do
  SYNTHJAX_PROCESS=$process "${PYTHON:-python}" -m synthjax "$@" &
  jobs+=($!)
done
trap 'kill -TERM "${jobs[@]}" 2>/dev/null || true' TERM
trap 'kill -INT "${jobs[@]}" 2>/dev/null || true' INT
status=0
for job in "${jobs[@]}"; do
  code=0
  wait "$job" || code=$?
  while kill -0 "$job" 2>/dev/null; do  # the wait was cut short by a signal to this script
    code=0
    wait "$job" || code=$?
  done
  if [ "$status" = 0 ]; then status=$code; fi
done
exit "$status"
