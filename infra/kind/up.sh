#!/bin/sh
# kind, KubeRay's operator and one workload on this machine, with one command:
#   sh infra/kind/up.sh                    # torch-ddp-train, until it is done
#   sh infra/kind/up.sh serve-fastapi      # serve-fastapi, until it is ready
# Needs docker, kind, kubectl and helm, about 4 CPUs and 8 GB for Docker. A second run builds
# the image anew and replaces the job or service; a job then resumes the run that is on the volume,
# and has little to do if that was done. To remove all of it, the volume too:
#   kind delete cluster --name ray-ref
set -eu

workload=${1:-torch-ddp-train}
case $workload in
torch-ddp-train) other=serve-fastapi kind=rayjob ;;
serve-fastapi) other=torch-ddp-train kind=rayservice ;;
*)
    echo "error: workload '$workload': must be torch-ddp-train or serve-fastapi" >&2
    exit 2
    ;;
esac
for program in docker kind kubectl helm; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is not installed" >&2
        exit 2
    fi
done
if ! docker info >/dev/null 2>&1; then
    echo "error: Docker does not answer: start it, or join its group" >&2
    exit 2
fi

cd "$(dirname "$0")/../.."
# Never the cluster that the user's own context happens to name.
kubectl() { command kubectl --context kind-ray-ref "$@"; }
state() { kubectl -n ray get "$kind" "$workload" -o "jsonpath={$1}"; }

if ! kind get clusters 2>/dev/null | grep -qx ray-ref; then
    kind create cluster --config infra/kind/kind.yaml --wait 5m
fi
image=ray-ref/$workload:2.60.0-cpu
docker build -f infra/docker/Dockerfile --build-arg "PROJECT=$workload" -t "$image" .
kind load docker-image --name ray-ref "$image"

# The namespace first: the operator gets a role in it and no right elsewhere.
kubectl apply --server-side -f infra/kustomize/base/namespace.yaml
helm upgrade --install kuberay-operator kuberay-operator --kube-context kind-ray-ref \
    --repo https://ray-project.github.io/kuberay-helm/ --version 1.7.0 \
    --namespace kuberay-system --create-namespace \
    --values infra/helm/kuberay-operator.yaml --set replicas=1 --wait --timeout 5m
if ! kubectl -n ray get secret serve-fastapi-keys >/dev/null 2>&1; then
    key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    kubectl -n ray create secret generic serve-fastapi-keys --from-literal=keys="$key"
fi
# What has run before would be left as it is: neither run again nor given the new image.
kubectl -n ray delete "$kind" "$workload" --ignore-not-found --timeout=5m
kubectl apply -k infra/kustomize/overlays/dev -l "app.kubernetes.io/instance!=$other"

if [ "$workload" = serve-fastapi ]; then
    if ! kubectl -n ray wait rayservice/serve-fastapi --for=condition=Ready --timeout=20m; then
        kubectl -n ray get rayservice,pods >&2
        exit 1
    fi
    echo "ready. In another shell:"
    echo "  kubectl --context kind-ray-ref -n ray port-forward service/serve-fastapi-serve-svc 8000"
    exit 0
fi
# The job's own deadlines end this loop at the latest.
while :; do
    status=$(state .status.jobDeploymentStatus)
    case $status in
    Complete | Failed | ValidationFailed) break ;;
    esac
    sleep "${POLL_S:-5}"
done
# A job that was never submitted has no log.
kubectl -n ray logs "job/$workload" --tail=-1 || kubectl -n ray get pods >&2
if [ "$status" != Complete ]; then
    echo "error: the job failed: $status $(state .status.reason) $(state .status.message)" >&2
    exit 1
fi
