"""The shard contract as both sides read it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_shards.schema import (
    MAX_KEY_BYTES,
    METHODS,
    Manifest,
    ShardSetError,
    TarEntry,
    check_same_samples,
    label_of,
    open_shard_set,
    parse_quality,
    quality_name,
    rows_by_shard,
    sample_key,
    write_atomic,
)
from tests.shards import write_root

MANIFEST = Manifest(
    quality=77,
    encoder={"name": "mozjpeg"},
    crop={"size": 256},
    source={"compression": "c23"},
    splits={"origin": "drawn", "seed": 0},
    counts={"train": {"youtube": 1}, "val": {}, "test": {}},
    tars={"train-000000.tar": TarEntry("0" * 64, 10240, 1)},
    index_sha256="1" * 64,
)


@given(st.integers(1, 100))
def test_quality_has_one_name(quality: int) -> None:
    assert parse_quality(quality_name(quality)) == parse_quality(str(quality)) == quality


@pytest.mark.parametrize("text", ["0", "101", "-5", "7.5", "", "q", "high", "RAW", "७७"])
def test_quality_outside_the_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a whole number from 1 to 100 nor 'raw'"):
        parse_quality(text)


@given(st.sampled_from(METHODS), st.text(max_size=120), st.integers(0, 99_999))
def test_key_survives_every_reader_or_is_refused(method: str, video: str, frame: int) -> None:
    try:
        key = sample_key(method, video, frame)
    except ValueError:
        assert any(letter in "./" or letter.isspace() for letter in video) or len(video.encode()) > 60
    else:
        assert "." not in key
        assert len(key.split()) == 1
        assert len(key.encode()) <= MAX_KEY_BYTES


def test_labels() -> None:
    assert [label_of(method) for method in METHODS] == [0] * 3 + [1] * 7
    with pytest.raises(ValueError, match="'deepfakes' is unknown"):
        label_of("deepfakes")


def test_manifest_comes_back_with_the_same_digest(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == MANIFEST
    assert loaded.digest == MANIFEST.digest != replace(MANIFEST, quality=60).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format version 1, this release reads version 2; delete .* and pack it again"),
        ({"format": "other"}, "not the manifest of a shard set"),
        ({"surplus": 1}, "missing or unexpected entries: surplus"),
        ({"quality": True}, "'quality' is true and must be a whole number from 1 to 100"),
        ({"quality": "77"}, "'quality' is \"77\" and must be"),
        ({"crop": None}, "'crop' is null and must be an object"),
        ({"crop": {"size": -1}}, "'crop.size' is -1 and must be a number of pixels"),
        ({"counts": {"train": {"youtube": "1"}}}, "'counts.train' is .* and must be samples by method"),
        ({"index_sha256": 5}, "'index_sha256' is 5 and must be a SHA-256"),
        ({"tars": []}, r"'tars' is \[\] and must be an object"),
        ({"tars": {"a.tar": 5}}, "'tars.a.tar' is 5 and must be bytes, samples, sha256"),
        ({"tars": {"a.tar": {"sha256": "0" * 64, "bytes": -1, "samples": 1}}}, "'tars.a.tar.bytes' is -1 and must be"),
        ({"tars": {"../a.tar": {}}}, "'tars' is \"../a.tar\" and must be the name of a tar"),
    ],
)
def test_other_manifests_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardSetError, match=message):
        Manifest.load(tmp_path)


def test_missing_sets_are_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match="no set of quality 15; it has q10, q77, raw"):
        open_shard_set(packed, 15)
    with pytest.raises(ShardSetError, match="no such folder"):
        open_shard_set(tmp_path / "nowhere", 15)


@pytest.mark.parametrize("name", ["index.parquet", "train-000000.tar"])
def test_a_damaged_file_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(packed / "q77", tmp_path / "q77")
    with (tmp_path / "q77" / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ShardSetError, match=name):
        open_shard_set(tmp_path, 77)


def test_sets_of_other_samples_are_named(shard_root: Path, tmp_path: Path) -> None:
    q77 = open_shard_set(shard_root, 77)
    check_same_samples(q77, open_shard_set(shard_root, "raw"))
    write_root(tmp_path / "fewer", ("raw",), pairs=(1, 1, 1))
    write_root(tmp_path / "other", ("raw",), pairs=(16, 6, 6), frames=1)
    write_root(tmp_path / "small", ("raw",), size=32)
    for name, message in (
        ("fewer", r"fewer/raw: holds 36 samples, .*/q77 168"),
        ("other", r"other/raw: holds other samples than .*/q77"),
        ("small", r"small/raw: its crops are 32 pixels wide, those of .*/q77 64"),
    ):
        with pytest.raises(ShardSetError, match=message):
            check_same_samples(q77, open_shard_set(tmp_path / name, "raw"))
    with pytest.raises(ShardSetError, match=r"small/raw: its crops .* those of s3://bucket/root/q77 64"):
        check_same_samples(replace(q77, url="s3://bucket/root/q77"), open_shard_set(tmp_path / "small", "raw"))


def test_atomic_write_leaves_the_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_by_shard_are_slices_wherever_rows_stand() -> None:
    table = pa.table({"shard": ["b", "b", "a", "c", "a"], "row": [0, 1, 2, 3, 4]})
    assert {name: part["row"].to_pylist() for name, part in rows_by_shard(table).items()} == {
        "b": [0, 1],
        "a": [2, 4],
        "c": [3],
    }
    assert rows_by_shard(table[:0]) == {}
