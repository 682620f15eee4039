"""YAML 1.2: what is read, that what is written is read back by either version, and nothing but YAMLError."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_shards.yaml12 import YAMLError, dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("077", 77),
        ("-010", -10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("+.5", 0.5),
        (".inf", float("inf")),
        ("off", "off"),
        ("Yes", "Yes"),
        ("True", True),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("{a: &x {b: 010}, c: {<<: *x}}", {"a": {"b": 10}, "c": {"b": 10}}),
    ],
)
def test_values_are_those_of_the_core_schema(text: str, value: Any) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    "text", ["[", "!!int x", "!!timestamp x", "9" * 5000, "[" * 1000, "{[1]: 2}", b"\xff", "a: *b"]
)
def test_what_cannot_be_read_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(YAMLError):
        load_yaml(text)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex("[-+0-9._eExon]{,8}")
)


@settings(max_examples=15)
@given(st.recursive(SCALARS, lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.integers(), parts)))
def test_what_is_written_is_read_back_by_either_version(content: Any) -> None:
    text = dump_yaml(content)
    assert load_yaml(text) == content
    assert yaml.safe_load(text) == content
