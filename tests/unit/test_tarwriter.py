"""The tar's bytes, its offsets and DALI's index, for any content."""

import hashlib
import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wds2idx import IndexCreator  # DALI's own indexer

from datasets_shards.shards import tarwriter
from datasets_shards.shards.tarwriter import Component, TarWriter, read_components, write_records

KEYS = st.text("abcXYZ019_-é", min_size=1, max_size=40)
SAMPLES = st.lists(
    st.tuples(KEYS, st.fixed_dictionaries({"jpg": st.binary(max_size=2000), "cls": st.sampled_from([b"0", b"1"])})),
    min_size=1,
    max_size=8,
    unique_by=lambda sample: sample[0],
)


def write(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> list[dict[str, int]]:
    tar = TarWriter(path)
    offsets = [tar.add_sample(key, members) for key, members in samples]
    entry = tar.close()
    assert not path.exists()  # before it is complete
    tar.publish()
    assert sorted(other.name for other in path.parent.glob(f"*{path.stem}*")) == [f"{path.stem}.idx", path.name]
    content = path.read_bytes()
    assert entry.sha256 == hashlib.sha256(content).hexdigest()
    assert (entry.bytes, entry.samples) == (len(content), len(samples))
    return offsets


@given(SAMPLES)
@settings(max_examples=40, deadline=None)
def test_stock_tools_agree(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.tar"
        offsets = write(path, samples)

        content = path.read_bytes()
        for (_, members), places in zip(samples, offsets, strict=True):
            for extension, payload in members.items():
                assert content[places[extension] : places[extension] + len(payload)] == payload

        with tarfile.open(path) as archive:
            infos = archive.getmembers()
            assert [info.name for info in infos] == [f"{key}.{ext}" for key, members in samples for ext in members]
            assert {(info.mtime, info.uid, info.gid, info.pax_headers.get("x")) for info in infos} == {(0, 0, 0, None)}
        assert content[257:263] == b"ustar\0"

        write(Path(name) / "b.tar", samples)
        assert (Path(name) / "b.tar").read_bytes() == content


@given(SAMPLES)
@settings(max_examples=8, deadline=None)
def test_index_is_the_one_that_dali_makes(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    samples = [(key.replace("é", "e") + str(i), members) for i, (key, members) in enumerate(samples)]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.tar"
        write(path, samples)
        with IndexCreator(str(path), str(path.with_suffix(".dali")), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_bytes() == path.with_suffix(".dali").read_bytes()


@given(SAMPLES, st.integers(0, 8))
@settings(max_examples=20, deadline=None)
def test_segments_give_the_same_bytes(samples: list[tuple[str, dict[str, bytes]]], cut: int) -> None:
    """Records that were written elsewhere and appended, against samples added one by one."""
    with tempfile.TemporaryDirectory() as name:
        offsets = write(Path(name) / "direct.tar", samples)
        tar = TarWriter(Path(name) / "parts.tar")
        for in_memory, part in ((True, samples[:cut]), (False, samples[cut:])):
            records = io.BytesIO()
            components = [write_records(records, records.tell(), key, members) for key, members in part]
            (Path(name) / "segment").write_bytes(records.getvalue())
            tar.add_segment(records.getvalue() if in_memory else Path(name) / "segment", components)
        tar.close()
        tar.publish()
        for suffix in (".tar", ".idx"):
            direct, parts = (Path(name) / f"{stem}{suffix}" for stem in ("direct", "parts"))
            assert direct.read_bytes() == parts.read_bytes()
        read = [read_components(Path(name) / "direct.idx", extension) for extension in samples[0][1]]
        assert [{part.extension: part.offset for part in parts} for parts in zip(*read, strict=True)] == offsets


def test_an_abandoned_tar_leaves_nothing(tmp_path: Path) -> None:
    tar = TarWriter(tmp_path / "a.tar")
    tar.add_sample("key", {"cls": b"0"})
    tar.abandon()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "v1.2 2\njpg 512 3 a.jpg\n", "v1.1 0\n", "v1.2 1\njpg 512 3\n", "v1.2 1\ncls 512 1 a.cls\n"]
)
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.idx").write_text(content)
    with pytest.raises(ValueError, match=r"a.idx: no index of DALI's v1.2 with a .jpg in each sample"):
        read_components(tmp_path / "a.idx", "jpg")


def test_only_the_components_asked_for_become_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is made from the images of millions of samples; what else they have must cost next to nothing."""
    tar = TarWriter(tmp_path / "a.tar")
    for number in range(20):
        tar.add_sample(f"{number}", {"jpg": b"image", "cls": b"0", "json": b"{}", "mask.png": b"mask"})
    tar.close()
    tar.publish()
    made: list[str] = []

    def counting(*fields: Any) -> Component:
        made.append(fields[-1])
        return Component(*fields)

    monkeypatch.setattr(tarwriter, "Component", counting)
    assert [part.name for part in read_components(tmp_path / "a.idx", "mask.png")] == made
    assert made == [f"{number}.mask.png" for number in range(20)]
