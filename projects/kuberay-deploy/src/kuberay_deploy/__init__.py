"""Ray projects on Kubernetes, by KubeRay."""
