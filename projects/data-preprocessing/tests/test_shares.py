"""Every row of a split has one worker."""

from collections import Counter
from typing import Any

import pytest
from data_preprocessing.config import Config
from data_preprocessing.shares import check_shares, share
from hypothesis import given
from hypothesis import strategies as st
from ray_shared.config import compose
from ray_shared.errors import UserError


def listed(split: str, sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {"path": f"features/split={split}/unit-{i:06d}-0000.parquet", "rows": size}
        for i, size in enumerate(sizes)
    ]


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), world_size=st.integers(1, 8))
def test_shares_are_disjoint_complete_and_equal(sizes: list[int], world_size: int):
    files = listed("train", sizes) + listed("val", [7])
    rows: Counter[tuple[str, int]] = Counter()
    counts = []
    for rank in range(world_size):
        own = [(p, i) for p, a, b in share(files, "train", rank, world_size) for i in range(a, b)]
        counts.append(len(own))
        rows.update(own)
    assert set(rows.values()) <= {1}
    assert set(rows) == {(f["path"], i) for f in listed("train", sizes) for i in range(f["rows"])}
    assert max(counts) - min(counts) <= 1


def test_more_workers_than_rows_are_refused():
    config = compose(Config, "data_preprocessing.conf", ["action=train", "scaling.num_workers=3"])
    files = listed("train", [10]) + listed("val", [2]) + listed("test", [10])
    with pytest.raises(UserError) as caught:
        check_shares(config, {"files": files})
    assert str(caught.value) == "scaling.num_workers=3: must be at most 2, the rows of val"
