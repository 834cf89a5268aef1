"""Columns: how a raw value becomes a category, and the way of a schema through JSON."""

from __future__ import annotations

import json

import pytest

from dssm_helpers.movielens import AGE_GROUPS, SCHEMA
from dssm_helpers.schema import Column, Schema

COLUMNS = {column.name: column for column in SCHEMA.columns}


def test_age_groups_are_lower_bounds():
    ages = [0, 1, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 99]
    expected = [1, 1, 1, 18, 18, 25, 25, 35, 35, 45, 45, 50, 50, 56, 56]
    assert COLUMNS["age"].normalise(ages).tolist() == expected
    assert COLUMNS["age"].normalise(AGE_GROUPS).tolist() == list(AGE_GROUPS)  # groups stay as they are


def test_a_postal_area_is_three_characters_of_five_digits():
    areas = COLUMNS["zip"].normalise(["94043", "V3N4P", " 05201", "1", 5201]).tolist()
    assert areas == ["940", "V3N", "052", "1", "052"]


@pytest.mark.parametrize("value", ["old", -1, 131, True, float("nan")])
def test_numbers_outside_their_limits_are_refused(value):
    with pytest.raises(ValueError, match="age: expected between 0 and 130, got"):
        COLUMNS["age"].normalise([value])


def test_a_list_is_split_at_its_separator_or_taken_as_it_is():
    assert COLUMNS["genres"].split("Action|Comedy") == ["Action", "Comedy"]
    assert Column("tags", "item", kind="list", separator=", ").split("a, b") == ["a", "b"]
    assert COLUMNS["genres"].split(("Action",)) == ["Action"]
    assert COLUMNS["gender"].split("F|M") == ["F|M"]  # no list


@pytest.mark.parametrize(("side", "kind", "message"), [("user", "text", "kind 'text'"), ("x", "list", "side 'x'")])
def test_unknown_kinds_and_sides_are_refused(side, kind, message):
    with pytest.raises(ValueError, match=f"unknown {message}; choose from"):
        Column("c", side, kind)


def test_a_schema_survives_json_():
    assert Schema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA
    assert [column.name for column in SCHEMA.of("item")] == ["year", "genres"]
