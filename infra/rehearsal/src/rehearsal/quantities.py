"""Quantities of Kubernetes, and mistakes in them and in what is around them."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from ray_shared.errors import UserError

QUANTITY = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)")
UNITS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3)} | {
    f"{unit}{i}": Decimal(1024 if i else 1000) ** power
    for power, unit in enumerate("KMGTP", 1)
    for i in ("", "i")
}


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Says of a mistake in a block where it is.

    Raises:
        UserError: Also for what comes of a value of another type than Kubernetes wants.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{where}: not of the type that Kubernetes wants: {error}") from None


def quantity(text: object) -> Decimal:
    """The number that a Kubernetes quantity means: `500m` is 0.5, `1Gi` is 2**30.

    Raises:
        UserError: If it is none.
    """
    found = QUANTITY.fullmatch(str(text))
    if found is None or found[2] not in UNITS:
        raise UserError(f"quantity {text}: must be as in 500m, 2 or 8Gi")
    return Decimal(found[1]) * UNITS[found[2]]


def whole(text: object) -> int:
    """The same, rounded up, as the operator does."""
    return math.ceil(quantity(text))
