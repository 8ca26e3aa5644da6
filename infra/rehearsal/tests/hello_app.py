"""A small application of Ray Serve, in versions that differ by a word."""

from typing import Any

from ray import serve


# Two: an update of a single one leaves its pod without any, and so unready, for a moment.
@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
class Hello:
    """Says one word."""

    def __init__(self, word: str):
        self.word = word

    def __call__(self, request: Any) -> str:
        """The answer to every request."""
        return self.word


def build(args: dict[str, str]) -> Any:
    """What `import_path` names."""
    return Hello.bind(args["word"])
