"""What a registered version says of itself."""

import math

from datasets_shards.schema import Manifest
from fdtrain.registry import model_card


def manifest(quality: int | str, methods: tuple[str, ...], made_up: bool) -> Manifest:
    encoder = {"name": "mozjpeg", "library": "MozJPEG 4", "mode": "baseline", "subsampling": "4:2:0"}
    return Manifest(
        quality=quality,
        encoder=encoder,
        crop={"size": 256, "margin": 1.3, "alignment": "5 points"},
        source={"compression": "c23", "videos": 5000} | ({"made_up": True} if made_up else {}),
        splits={"origin": "official"},
        counts={"train": dict.fromkeys(methods, 7), "test": {"NeuralTextures": 3}},
        tars={},
        index_sha256="",
    )


def card(methods: tuple[str, ...] = ("youtube", "Deepfakes"), licence: str | None = None, made_up: bool = False) -> str:
    metrics = {
        "val/video/auc": 0.91,
        "val/video/auc_low": 0.85,
        "val/video/auc_high": 0.96,
        "test/video/auc": math.nan,
        "test/video/auc/Deepfakes": 0.75,
        "test/video/auc_low/Deepfakes": 0.7,
        "test/video/auc_high/Deepfakes": 0.8,
    }
    sets = [manifest(77, methods, made_up), manifest("raw", methods, made_up)]
    return model_card(
        "fdtrain-meso4-q77",
        {"name": "meso4", "options": {"image_size": 256, "variant": None}, "input": {"size": 256}},
        training=sets,
        scored=sets[0],
        metrics=metrics,
        facts={"data.digest": "d1", "git.revision": "r1"},
        run_id="run1",
        verdict="the first version",
        licence=licence,
    )


def test_a_card_says_what_it_was_trained_on_and_how_well_it_does() -> None:
    text = card()
    assert "trained at q77 and raw. The first version." in text
    assert "- **q77**: mozjpeg (MozJPEG 4), baseline, 4:2:0; crops: size 256, margin 1.3, alignment 5 points" in text
    assert "Training images: 7 Deepfakes, 7 youtube" in text
    assert "NeuralTextures" not in text.split("## Numbers")[0]  # it isn't trained on what is tested
    assert "data digest `d1`, code `r1`, MLflow run `run1`" in text
    assert "| val, per video | 0.910 [0.850, 0.960] |" in text
    assert "| test, per video | undefined |" in text
    assert "| Deepfakes | 0.750 [0.700, 0.800] |" in text
    assert "It has seen Deepfakes, youtube and nothing else" in text
    assert len(text) < 5000


def test_made_up_data_has_no_licence_of_others() -> None:
    text = card(made_up=True).split("## Licence of the data\n\n")[1]
    assert text.startswith("None: the videos were made up by `python -m datasets_shards demo`")
    assert "FaceForensics++" not in text


def test_the_licence_of_the_data() -> None:
    assert "non-commercial research" in card()
    assert "Not recorded; set `tracking.data_licence`" in card(methods=("real", "fake"))
    assert card(licence="CC BY 4.0").split("## Licence of the data\n\n")[1].startswith("CC BY 4.0\n")
