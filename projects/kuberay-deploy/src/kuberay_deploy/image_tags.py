"""The version of Ray in the tag of an image: one reading, for what is made and for what is checked.

Source: https://docs.ray.io/en/releases-2.60.0/ray-overview/installation.html#docker-source-images
"""

import re

NAMED = re.compile(r"ray[-_.]?(\d+\.\d+\.\d+)(?![.\d])")
LEADING = re.compile(r"(\d+\.\d+\.\d+)(?![.\d])")


def named_version(tag: str) -> str | None:
    """`2.60.0` of `0.1.0-ray2.60.0`; None if the tag does not say that it is Ray's."""
    match = NAMED.search(tag)
    return match[1] if match else None


def ray_version(tag: str) -> str | None:
    """Of an image of which the tag is known to tell it: the version it names, or begins with."""
    match = LEADING.match(tag)
    return named_version(tag) or (match[1] if match else None)
