"""Joins the cluster whose address is given; the test starts it, with a token.

Run: python docs/tests/errors/no_token.py HOST:PORT
"""

# ruff: noqa: T201

import sys

import ray

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ray.init(address=sys.argv[1])
    print("joined:", len(ray.nodes()), "node")
