"""The projects of this repository on Kubernetes, by KubeRay."""
