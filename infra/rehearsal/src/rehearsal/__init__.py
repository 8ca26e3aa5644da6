"""A KubeRay manifest run on one machine, each pod in namespaces of its own."""
