"""The tar's bytes, its offsets and DALI's index, for any content."""

import hashlib
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from wds2idx import IndexCreator  # DALI's own indexer

from datasets_shards.shards.tarwriter import TarWriter

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
