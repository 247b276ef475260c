#!/usr/bin/env bash
# Starts deploy/compose.yaml, submits a run, and waits until it has succeeded and Prometheus has seen it; then takes all away.
# Needs a container engine with compose; PROMETHEUS_PORT chooses another port than 9090.
set -euo pipefail
cd "$(dirname "$0")/.."
compose() { docker compose -f deploy/compose.yaml "$@"; }
trap 'compose --profile cli down --volumes --timeout 45 >/dev/null 2>&1' EXIT

compose up --build --detach --wait --wait-timeout 180
compose run --rm cli submit audit --run-id try-1 --wait
prometheus=http://127.0.0.1:${PROMETHEUS_PORT:-9090}
query='sum(lockstep_ended_runs_total{status="succeeded"})'
for _ in $(seq 60); do
    seen=$(curl --silent --get "$prometheus/api/v1/query" --data-urlencode "query=$query")
    case $seen in *'"1"]'*) echo "Prometheus has seen the run: $seen"; exit 0 ;; esac
    sleep 1
done
echo "Prometheus has not seen the run: $seen" >&2
exit 1
