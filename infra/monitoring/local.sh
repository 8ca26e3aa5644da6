#!/bin/sh
# Prometheus and Grafana for the Ray that runs on this machine, until Ctrl-C. Ray writes their
# configuration when it starts with its dashboard (cluster.dashboard=true); both must be installed.
#
#     sh infra/monitoring/local.sh
#
# Prometheus answers on http://127.0.0.1:9090, Grafana on http://127.0.0.1:3000 (admin, admin).
set -eu

metrics="${RAY_TMPDIR:-/tmp}/ray/session_latest/metrics"
if [ ! -f "$metrics/prometheus/prometheus.yml" ]; then
    echo "error: $metrics: no configuration there: start Ray with its dashboard first" >&2
    exit 2
fi
if ! command -v prometheus >/dev/null; then
    echo "error: prometheus is not installed: https://prometheus.io/download/" >&2
    exit 2
fi

data=$(mktemp -d)
children=""
stop() {
    # Ours only, by their ids.
    for child in $children; do
        kill "$child" 2>/dev/null || true
    done
    wait
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

prometheus --config.file="$metrics/prometheus/prometheus.yml" --storage.tsdb.path="$data" \
    --web.listen-address=127.0.0.1:9090 --log.level=warn &
children=$!
echo "Prometheus: http://127.0.0.1:9090"

if command -v grafana >/dev/null; then
    GF_SERVER_HTTP_ADDR=127.0.0.1 GF_PATHS_DATA="$data/grafana" grafana server \
        --homepath "${GRAFANA_HOME:-/usr/share/grafana}" \
        --config "$metrics/grafana/grafana.ini" >"$data/grafana.log" 2>&1 &
    children="$children $!"
    echo "Grafana: http://127.0.0.1:3000"
else
    echo "Grafana is not installed: https://grafana.com/grafana/download" >&2
fi
wait
