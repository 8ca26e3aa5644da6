"""Search spaces: what is right becomes Tune's distributions, what is wrong is refused by key."""

from typing import Any

import pytest
from asha_pbt_tune import space
from ray import tune
from ray_shared.errors import UserError


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"lr": {"normal": [0, 1]}}, "space.lr: unknown distribution 'normal': must be one of"),
        ({"lr": {"logunifrom": [0.1, 1]}}, "did you mean 'loguniform'?"),
        ({"lr": {"uniform": [1, 1]}}, "space.lr.uniform=[1, 1]: the low bound must be less"),
        ({"lr": {"uniform": [2, 1]}}, "space.lr.uniform=[2, 1]: the low bound must be less"),
        ({"lr": {"loguniform": [0, 1]}}, "space.lr.loguniform=[0, 1]: a logarithm needs bounds"),
        ({"lr": {"loguniform": [-1, 1]}}, "a logarithm needs bounds greater than 0"),
        ({"batch_size": {"lograndint": [0, 8]}}, "a logarithm needs bounds greater than 0"),
        ({"lr": {"uniform": [0.1]}}, "space.lr.uniform=[0.1]: must be [low, high]"),
        ({"lr": {"uniform": 0.1}}, "space.lr.uniform=0.1: must be [low, high]"),
        ({"lr": {"quniform": [0, 1]}}, "space.lr.quniform=[0, 1]: must be [low, high, step]"),
        ({"lr": {"quniform": [0, 1, 2]}}, "the step must be in (0, 1]"),
        ({"lr": {"uniform": ["a", "b"]}}, "space.lr.uniform: found 'a', must be numbers"),
        ({"lr": {"uniform": [0, float("inf")]}}, "found inf, must be numbers"),
        ({"lr": {"choice": [0.1]}}, "space.lr.choice=[0.1]: must be a list of two or more values"),
        ({"lr": {"choice": [0.1, True]}}, "space.lr.choice: found True, must be numbers"),
        ({"width": {"uniform": [8, 64]}}, "space.width.uniform: the hyperparameter is an integer"),
        ({"width": {"randint": [8, 64.5]}}, "space.width.randint: found 64.5, must be integers"),
        ({"width": {"choice": [8, 12.5]}}, "space.width.choice: found 12.5, must be integers"),
        ({"lr": "big"}, "space.lr: found 'big', must be numbers"),
        ({"lr": {}}, "space.lr: must have one distribution, found none"),
        (
            {"lr": {"uniform": [0, 1], "choice": [1, 2]}},
            "space.lr: must have one distribution, found uniform and choice; take one away: "
            "'~space.lr.uniform'",
        ),
        (
            {"learning_rate": {"uniform": [0, 1]}},
            "space.learning_rate: objective=torch has no such key: it has lr, weight_decay,",
        ),
        ({"drop_out": 0.1}, "objective=torch has no such key: did you mean 'dropout'?"),
        ({"lr": 0.1}, "space={'lr': 0.1}: nothing to search for"),
    ],
)
def test_wrong_space_is_refused_by_key(entry: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as error:
        space.check(entry, "torch")
    assert sentence in str(error.value)


def test_right_space_becomes_tunes_distributions():
    right = {
        "lr": {"loguniform": [1e-5, 1e-1]},
        "dropout": {"uniform": [0.0, 0.5]},
        "weight_decay": {"quniform": [0.0, 1.0, 0.25]},
        "batch_size": {"choice": [32, 64]},
        "width": {"qrandint": [8, 64, 8]},
        "num_layers": {"randint": [1, 4]},
        "label_smoothing": 0.1,
    }
    space.check(right, "torch")
    made = space.to_tune(right)
    assert made["label_smoothing"] == 0.1
    del made["label_smoothing"]
    draws = {name: {domain.sample() for _ in range(200)} for name, domain in made.items()}
    assert all(1e-5 <= value <= 1e-1 for value in draws["lr"])
    assert draws["weight_decay"] == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert draws["batch_size"] == {32, 64}
    assert draws["num_layers"] == {1, 2, 3}
    assert draws["width"] == set(range(8, 65, 8))


def test_logarithms_are_drawn_as_logarithms():
    # Half of them lie below the geometric mean; of a uniform draw one in a hundred would.
    drawn = [space.to_tune({"lr": {"loguniform": [1e-4, 1.0]}})["lr"].sample() for _ in range(400)]
    assert 120 < sum(value < 1e-2 for value in drawn) < 280


def test_grid_counts_its_combinations_and_wants_choices():
    assert space.combinations({"lr": {"choice": [1, 2, 3]}, "width": {"choice": [8, 16]}}) == 6
    assert space.combinations({"lr": {"choice": [1, 2, 3]}, "width": 8}) == 3
    with pytest.raises(UserError, match=r"space.lr.uniform: search=grid needs choice"):
        space.combinations({"lr": {"uniform": [0, 1]}})
    made = space.to_tune({"lr": {"choice": [1, 2]}}, grid=True)
    assert made["lr"] == tune.grid_search([1, 2])


def test_pbt_changes_only_what_may_change_and_shifts_choices():
    entries = {
        "lr": {"loguniform": [1e-4, 1e-1]},
        "batch_size": {"choice": [32, 64, 128]},
        "width": {"choice": [32, 64]},
        "dropout": 0.1,
    }
    found = space.mutations(entries, "torch")
    assert found.keys() == {"lr", "batch_size"}
    assert found["batch_size"] == [32, 64, 128]


def test_pbt_stays_inside_the_space():
    entries = {
        "dropout": {"uniform": [0.0, 0.6]},
        "num_layers": {"randint": [1, 4]},
        "width": {"qrandint": [8, 64, 8]},
        "batch_size": {"choice": [32, 64]},
    }
    outside = {"dropout": 0.72, "num_layers": 4, "width": 77, "batch_size": 32, "other": 1}
    assert space.inside(entries, outside) == {
        "dropout": 0.6,
        "num_layers": 3,
        "width": 64,
        "batch_size": 32,
        "other": 1,
    }


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ({"qrandint": [8, 64, 8]}, 29, 32),
        ({"qrandint": [8, 64, 8]}, 32, 32),
        ({"quniform": [0.0, 0.6, 0.1]}, 0.36, 0.4),
        # It is there already, but for what is rounded off.
        ({"quniform": [0.0, 0.6, 0.1]}, 0.30000000000000004, 0.30000000000000004),
    ],
)
def test_steps_of_a_range_are_kept(entry: dict[str, Any], value: float, expected: float):
    assert space.inside({"x": entry}, {"x": value})["x"] == pytest.approx(expected, abs=1e-12)
    assert space.contains({"x": entry}, {"x": value}) == (value == expected)


def test_a_float_pushed_to_a_whole_bound_stays_a_float():
    pushed = space.inside({"dropout": {"uniform": [0, 1]}}, {"dropout": 1.2})
    assert isinstance(pushed["dropout"], float)
    assert pushed == {"dropout": 1.0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 0.01, "width": 32}, True),
        ({"lr": 0.2, "width": 32}, False),
        ({"lr": 0.01, "width": 48}, False),
        ({"lr": 0.01}, False),
    ],
)
def test_what_the_space_contains(values: dict[str, Any], expected: bool):
    entries = {"lr": {"loguniform": [1e-4, 1e-1]}, "width": {"choice": [32, 64]}}
    assert space.contains(entries, values) is expected
