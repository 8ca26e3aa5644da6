#!/bin/sh
# Prometheus, Grafana and their view of the Ray pods, on the cluster of a context:
#   sh infra/monitoring/up.sh kind-ray-ref
# Needs kubectl and helm. Then, for Grafana's page (user admin; the password is in the secret
# prometheus-grafana):
#   kubectl -n monitoring port-forward service/prometheus-grafana 3000:80
set -eu

if [ $# -ne 1 ]; then
    echo "usage: sh infra/monitoring/up.sh CONTEXT (one of: kubectl config get-contexts -o name)" >&2
    exit 2
fi
context=$1
for program in kubectl helm; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is not installed" >&2
        exit 2
    fi
done

cd "$(dirname "$0")/../.."
kubectl() { command kubectl --context "$context" "$@"; }

helm upgrade --install prometheus kube-prometheus-stack --kube-context "$context" \
    --repo https://prometheus-community.github.io/helm-charts --version 92.1.0 \
    --namespace monitoring --create-namespace \
    --values infra/monitoring/prometheus-values.yaml --wait --timeout 10m
kubectl apply -k infra/monitoring
# A dashboard is a ConfigMap with the label that Grafana looks for.
load() {
    kubectl -n monitoring create configmap "$1" --from-file="$2" --dry-run=client -o yaml |
        kubectl label --local -f - grafana_dashboard=1 -o yaml |
        kubectl apply --server-side -f -
}
# The application's, where it lies.
dashboard=projects/serve-fastapi/monitoring/grafana-dashboard.json
load serve-fastapi "$dashboard"
# Ray's own: every head writes them when it starts.
head=$(kubectl -n ray get pods -l ray.io/node-type=head -o name | sed -n 1p)
if [ -z "$head" ]; then
    echo "No Ray cluster runs: for Ray's own dashboards, start this once more when one does."
    exit 0
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
kubectl -n ray exec "$head" -c ray-head -- \
    tar -C /tmp/ray/session_latest/metrics/grafana/dashboards -cf - . | tar -C "$made" -xf -
for file in "$made"/*.json; do
    load "ray-$(basename "$file" _grafana_dashboard.json | tr _ -)" "$file"
done
