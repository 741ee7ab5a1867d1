#!/usr/bin/env bash
# Several processes on this machine, as a rehearsal of a pod:
#   launch/local.sh 2 run --config configs/world_sft.py:smoke --workdir runs/two
# DEVICES=2 gives every process that many simulated CPU devices.
set -euo pipefail
processes=$1
shift
export SYNTHJAX_COORDINATOR=${SYNTHJAX_COORDINATOR:-127.0.0.1:9911} SYNTHJAX_PROCESSES=$processes
if [ -n "${DEVICES:-}" ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi
trap 'kill $(jobs -p) 2>/dev/null' INT TERM
for process in $(seq 0 $((processes - 1))); do
  SYNTHJAX_PROCESS=$process "${PYTHON:-python}" -m synthjax "$@" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
