"""A set's manifest and index: readable, in agreement with each other and with the folder, nobody in two splits."""

from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_shards.errors import first_few
from datasets_shards.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    METHODS,
    SPLITS,
    Manifest,
    ShardSetError,
    file_sha256,
    parse_quality,
    quality_name,
    strange_names,
)
from datasets_shards.sources import Video
from datasets_shards.sources.folder import NO_COMPRESSION
from datasets_shards.sources.names import people_named
from datasets_shards.verify.findings import Findings


def load_manifest(folder: Path, findings: Findings) -> Manifest | None:
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.load(folder)
    except (ShardSetError, OSError) as error:
        findings.add("manifest", str(error))
        return None
    own, declared = folder.resolve().name, quality_name(manifest.quality)
    if own != declared and _is_quality_name(own):
        findings.add("manifest", f"{path}: declares quality {manifest.quality}, but the folder is {own}; rename it")
    return manifest


def _is_quality_name(name: str) -> bool:
    try:
        return quality_name(parse_quality(name)) == name
    except ValueError:
        return False


def load_index(folder: Path, manifest: Manifest | None, findings: Findings) -> pa.Table | None:
    """The index, or None where it is no table with every column of `INDEX_SCHEMA` and a value in every cell."""
    path = folder / INDEX_NAME
    try:
        if manifest is not None and file_sha256(path) != manifest.index_sha256:
            findings.add("index", f"{path}: its SHA-256 is not the one that the manifest lists")
        names = pq.read_schema(path).names
        if missing := [name for name in INDEX_SCHEMA.names if name not in names]:
            findings.add("index", f"{path}: has no column {', '.join(missing)}; delete {folder} and pack it again")
            return None
        index = pq.read_table(path, schema=INDEX_SCHEMA).unify_dictionaries()
    except FileNotFoundError:
        findings.add("index", f"{path}: missing; delete {folder} and pack it again")
        return None
    except (OSError, pa.ArrowException) as error:
        findings.add("index", f"{path}: not readable ({str(error).splitlines()[0]}); delete {folder} and pack it again")
        return None
    if strange := strange_names(index):
        findings.add("index", f"{path}: {', '.join(strange)}: not a name that pack writes; don't use this set")
        return None
    if empty := [name for name in index.column_names if index[name].null_count]:
        findings.add("index", f"{path}: rows without a value in {', '.join(empty)}; delete {folder} and pack it again")
        return None
    return index


def tar_names(folder: Path, manifest: Manifest | None, index: pa.Table | None, findings: Findings) -> list[str]:
    """The tars to check, in the order of the manifest, else of the index, else of their names."""
    shards = _in_order(index["shard"]) if index is not None else None
    present = sorted(path.name for path in folder.glob("*.tar"))
    listed = list(manifest.tars) if manifest is not None else shards if shards is not None else present
    source = MANIFEST_NAME if manifest is not None else INDEX_NAME
    known = set(listed)
    for name in present:
        if name not in known:
            findings.add("files", f"{folder / name}: {source} doesn't list it; take it away")
    tars = {Path(name).stem for name in listed}
    for path in sorted(folder.glob("*.idx")):
        if path.stem not in tars:
            findings.add("files", f"{path}: beside no tar that {source} lists; take it away")
    if manifest is not None and index is not None:
        runs = _in_order(index["shard"])
        full = [name for name, tar in manifest.tars.items() if tar.samples]
        if runs != full:
            i = next((i for i, (a, b) in enumerate(zip(runs, full, strict=False)) if a != b), min(len(runs), len(full)))
            found, wanted = (names[i] if i < len(names) else "nothing" for names in (runs, full))
            place = f"{folder / INDEX_NAME}: as tar {i + 1} it has {found}"
            findings.add("index", f"{place} where the manifest lists {wanted}")
    return listed


def _in_order(column: pa.ChunkedArray) -> list[str]:
    """The values of a column, each run of equal ones once; a value that comes again in another run comes twice."""
    values = column.cast(pa.string()).combine_chunks()
    if not len(values):
        return []
    starts = pc.fill_null(pc.not_equal(values, pa.concat_arrays([pa.nulls(1, pa.string()), values[:-1]])), True)
    return values.filter(starts).to_pylist()


def check_counts(folder: Path, manifest: Manifest, index: pa.Table, findings: Findings) -> None:
    path = folder / MANIFEST_NAME
    found = Counter(
        {
            (row["split"], row["method"]): row["key_count"]
            for row in index.group_by(["split", "method"]).aggregate([("key", "count")]).to_pylist()
        }
    )
    listed = {(split, method): n for split, counts in manifest.counts.items() for method, n in counts.items()}
    for split, method in sorted(found.keys() | listed.keys()):
        there, here = listed.get((split, method), 0), found[split, method]
        if there != here:
            findings.add("counts", f"{path}: counts {there} samples of {split}/{method}, the index has {here}")
    rows = Counter({v["values"]: v["counts"] for v in pc.value_counts(index["shard"].cast(pa.string())).to_pylist()})
    for name, tar in manifest.tars.items():
        if tar.samples != rows[name]:
            findings.add("counts", f"{path}: counts {tar.samples} samples in {name}, the index has {rows[name]}")


def check_keys(folder: Path, index: pa.Table, findings: Findings) -> None:
    path = folder / INDEX_NAME
    if unknown := sorted(set(pc.unique(index["split"].cast(pa.string())).to_pylist()) - set(SPLITS)):
        findings.add("index", f"{path}: splits that there aren't: {first_few(unknown)}")
    counts = pc.value_counts(index["key"])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    rows: dict[str, list[str]] = defaultdict(list)
    for row in index.filter(pc.is_in(index["key"], repeated)).select(["key", "split"]).to_pylist():
        rows[row["key"]].append(row["split"])
    for key, splits in rows.items():
        where = f", in the splits {' and '.join(sorted(set(splits)))}" if len(set(splits)) > 1 else ""
        findings.add("index", f"{path}: {key}: {len(splits)} rows have this key{where}")


def check_people(folder: Path, manifest: Manifest | None, index: pa.Table, findings: Findings) -> str | None:
    """Nobody may be in two splits, in any method.

    Returns:
        A line for people where that can't be told of all videos: in a plain folder only names tell who is in one.
    """
    videos = index.group_by(["split", "method", "video", "target", "source"]).aggregate([]).to_pylist()
    is_plain = manifest is not None and manifest.source.get("compression") == NO_COMPRESSION
    plain = [row for row in videos if is_plain and row["method"] in METHODS]
    unnamed = 0
    for row, people in zip(plain, people_named([(row["method"], (row["video"],)) for row in plain]), strict=True):
        if people is not None:  # which older sets have as a person by the video's name
            row["target"], row["source"] = people
        else:
            unnamed += row["target"] in ("", row["video"])
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for row in videos:
        video = Video(row["method"], row["video"], row["target"], row["source"], "", Path(), "")
        for person in filter(None, video.identities):  # empty where nobody knows who it is
            seen[person].setdefault(row["split"], f"{row['method']}/{row['video']}")
    for person, splits in sorted(seen.items()):
        if len(splits) > 1:
            places = " and ".join(f"{split} ({example})" for split, example in sorted(splits.items()))
            findings.add("identities", f"{folder / INDEX_NAME}: identity {person} is in {places}")
    return f"not checked: who is in {unnamed} of {len(videos)} videos, for nothing says it" if unnamed else None
