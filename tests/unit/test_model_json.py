"""A model.json from elsewhere: whatever is odd in it is one line that names the file, the key and what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest

from fdtrain.config import UserError
from fdtrain.models.card import read_model_card

CROP = {"size": 128, "unscaled_size": 256, "margin": 1.3, "dct_scale": "8/16", "upsample": 0, "min_face": 48}


def content(**changed: Any) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": "meso4",
        "options": {"image_size": 128},
        "input": {"size": 128, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
        "trained_on": {"crop": dict(CROP)},
    }
    for path, value in changed.items():
        *sections, key = path.split("__")
        place = card
        for section in sections:
            place = place[section]
        place[key] = value
    return card


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("input.size", 0, "a whole number from 16 to 4096"),
        ("input.size", "128", "a whole number from 16 to 4096"),
        ("input.size", True, "a whole number from 16 to 4096"),
        ("input.std", [0.5, 0.0, 0.5], "three numbers above 0"),
        ("input.mean", [0.5, 0.5], "three numbers"),
        ("input.interpolation", "lanczos", "bicubic or bilinear"),
        ("options.image_size", "128", "a whole number from 16 to 4096"),
        ("trained_on.crop.dct_scale", "8/0", "8/1 to 8/16"),
        ("trained_on.crop.upsample", 50, "a whole number from 0 to 3"),
        ("trained_on.crop.margin", 1e9, "1 to 4"),
        ("trained_on.crop", [1], "an object, as manifests have it"),
    ],
)
def test_what_is_odd_is_named(key: str, value: Any, allowed: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(content(**{key.replace(".", "__"): value})))
    with pytest.raises(UserError) as error:
        read_model_card(tmp_path)
    said = f"{tmp_path / 'model.json'}: {key} is {json.dumps(value)}, allowed is {allowed}; take another model"
    assert str(error.value) == said


@pytest.mark.parametrize("trained_on", [None, {}, {"crop": None}, {"crop": {"size": 256, "upsample": None}}])
def test_what_is_not_recorded_is_passed_over(trained_on: Any, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(content(trained_on=trained_on)))
    assert read_model_card(tmp_path)["input"].size == 128
