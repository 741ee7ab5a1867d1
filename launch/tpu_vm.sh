#!/usr/bin/env bash
# On every host of a TPU pod slice, from here:
#   NAME=my-slice ZONE=us-east5-a launch/tpu_vm.sh run --config configs/x.py --workdir gs://bucket/x
# The hosts find their number and their coordinator in the slice's metadata, by way of the worker list that gcloud prints.
set -euo pipefail
: "${NAME:?name of the TPU VM}" "${ZONE:?its zone}"
hosts=$(gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" --format='value[delimiter=" "](networkEndpoints[].ipAddress)')
read -ra addresses <<<"$hosts"
for process in "${!addresses[@]}"; do
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker="$process" --command="cd synthjax && ACCEL=tpu make -s setup && \
    SYNTHJAX_COORDINATOR=${addresses[0]}:9911 SYNTHJAX_PROCESSES=${#addresses[@]} SYNTHJAX_PROCESS=$process .venv/bin/python -m synthjax $*" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
