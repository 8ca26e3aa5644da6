"""YAML is read as Kubernetes reads it; what it would lose in silence is refused with its line."""

from pathlib import Path

import pytest
from kuberay_deploy import manifests
from ray_shared.errors import UserError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "the key 'a', which line 1 already has"]),
        ("spec:\n  x: {a: 1, a: 2}\n", ["line 2", "the key 'a'"]),
        ("1: a\n'1': b\n", ["line 2", "the key '1'"]),
        ("a: [1\nb: 2\n", ["line 2", "found"]),
        ("a:\n\t- 1\n", ["line 2", "YAML"]),
        ("a: *nowhere\n", ["line 1", "undefined alias"]),
        ("a: !!python/object:os.system {}\n", ["line 1", "could not determine a constructor"]),
        (
            "kind: A\n---\n- 1\n",
            ["m.yaml: line 3: found a list; allowed: an object with apiVersion"],
        ),
        ("kind: A\n---\ntext\n", ["line 3: found a value; allowed: an object"]),
        ("? [a]\n: 1\n", ["line 1", "no text"]),
        ("", ["holds no document"]),
        ("---\n# nothing\n---\n", ["holds no document"]),
        ("a: \x07\n", ["m.yaml", "unacceptable"]),
        ("a: " + "[" * 5000, ["m.yaml"]),
        ("a: &a [*a]\n", ["must be YAML that could be JSON"]),
        ("a: .nan\n", ["could be JSON"]),
        ("a: !!binary aGk=\n", ["could be JSON"]),
    ],
)
def test_bad_yaml_is_refused_with_its_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        manifests.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        manifests.read(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        manifests.read(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match="byte 3 is no UTF-8"):
        manifests.read(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("=", "="),
        ("12:30:00", "12:30:00"),
        ("0o644", 0o644),
        ("0644", 0o644),
        ("yes", True),
        ("'yes'", "yes"),
        ("1.5", 1.5),
        ("500m", "500m"),
        ("", None),
    ],
)
def test_scalars_have_the_types_of_kubernetes(text: str, value: object) -> None:
    (document,) = manifests.parse(f"a: {text}\n", "m.yaml")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


def test_keys_become_text() -> None:
    (document,) = manifests.parse("a: {1: x, true: y, 1.5: z}\n", "m.yaml")
    assert document["a"] == {"1": "x", "true": "y", "1.5": "z"}


def test_anchors_and_merges_are_resolved() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    (document,) = manifests.parse(text, "m.yaml")
    assert document["b"] == {"x": 1, "y": 3}


def test_documents_and_lists_are_read_in_order() -> None:
    text = "kind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n---\nkind: D\n"
    assert [each["kind"] for each in manifests.parse(text, "m.yaml")] == list("ABCD")


def test_json_is_yaml() -> None:
    assert manifests.parse('{"kind": "A", "n": [1, null]}', "m") == [{"kind": "A", "n": [1, None]}]
