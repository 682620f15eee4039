"""Is a shard set what its manifest says, and do stock readers read the same from it?"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets_shards.errors import first_few
from datasets_shards.pool import ordered_map
from datasets_shards.schema import (
    INDEX_NAME,
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ShardSetError,
    rows_by_shard,
)
from datasets_shards.verify.findings import Findings
from datasets_shards.verify.imagecheck import IMAGE_FACTS, ImageRules, image_rules
from datasets_shards.verify.readers import (
    READERS,
    TARS_PER_JOB,
    ReaderJob,
    ReaderReport,
    read_with_stock_reader,
)
from datasets_shards.verify.setcheck import (
    check_counts,
    check_keys,
    check_people,
    load_index,
    load_manifest,
    tar_names,
)
from datasets_shards.verify.tarcheck import TarJob, TarReport, check_tar

Progress = Callable[..., Iterable[Any]]
"""Wraps an iterator, such as with a bar; is given `total`, `desc` and `unit` as tqdm takes them."""


def no_progress(results: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Show nothing."""
    return results


@dataclass
class SetReport:
    """The findings of one set.

    Args:
        folder: of the set.
        lines: what it is and what stock readers read, for people.
        findings: what is wrong with it.
        manifest: its manifest, where that is readable.
        samples: key and split of each row of the index, where that is readable.
    """

    folder: Path
    lines: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    manifest: Manifest | None = None
    samples: pa.Table | None = None


def find_sets(folder: Path) -> list[Path]:
    """The sets that `folder` stands for: itself, or those right inside it.

    Raises:
        ShardSetError: it is neither a shard set nor a root of some, not even a damaged one.
    """
    if _looks_like_set(folder):
        return [folder]
    if folder.is_dir():
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        if sets := [path for path in inside if _looks_like_set(path)]:
            return sets
    elif folder.exists():
        raise ShardSetError(f"{folder}: is a file; give the folder of a shard set, or a root folder with several")
    Manifest.load(folder)  # says what is missing
    return [folder]


def verify_set(folder: Path, quick: bool, workers: int, progress: Progress = no_progress) -> SetReport:
    """Check a set against its manifest and have stock readers read it.

    Args:
        folder: `<root>/q77`.
        quick: leave out decoding; stock readers get the first tar of each split only.
        workers: number of processes.
        progress: shown while the tars are read.
    """
    report = SetReport(folder)
    findings = report.findings
    report.manifest = manifest = load_manifest(folder, findings)
    index = load_index(folder, manifest, findings)
    rules = _rules(manifest, not quick, report)
    names = tar_names(folder, manifest, index, findings)
    if manifest is not None and index is not None:
        check_counts(folder, manifest, index, findings)
    if index is not None:
        report.samples = index.select(["key", "split"])
        check_keys(folder, index, findings)
        if line := check_people(folder, manifest, index, findings):
            report.lines.append(line)
    jobs = _tar_jobs(folder, names, manifest, index, rules)
    tars: list[TarReport] = []
    with closing(ordered_map(check_tar, jobs, workers)) as results:
        for tar in progress(results, total=len(names), desc=folder.name, unit="tar"):
            findings.extend(tar.findings)
            tars.append(tar)
    report.lines.insert(0, _describe(folder, manifest, index, tars))
    if index is None:
        report.lines.append("stock readers: not tried, for there is no index to compare with")
    else:
        extension = rules.extension or "jpg"
        _read_with_stock_readers(report, index, tars, extension, quick, workers, progress)
    return report


def compare_sets(reports: list[SetReport], findings: Findings) -> None:
    """All sets of a root must hold the same samples in the same order, of the same crops."""
    whole = [report for report in reports if report.samples is not None]
    for report in whole[1:]:
        there, here = whole[0].samples, report.samples
        assert there is not None
        assert here is not None
        if here.num_rows != there.num_rows:
            difference = f"{here.num_rows} samples where {whole[0].folder} has {there.num_rows}"
        elif row := _first_difference(there, here):
            difference = f"{row[2]} in row {row[0]} where {whole[0].folder} has {row[1]}"
        else:
            continue
        findings.add("root", f"{report.folder}: {difference}; a row must be the same sample in every set of a root")
    described = [report for report in reports if report.manifest is not None]
    for report in described[1:]:
        for name in ("crop", "source", "splits"):
            here, there = getattr(report.manifest, name), getattr(described[0].manifest, name)
            if keys := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
                other = f"is another than in that of {described[0].folder} ({first_few(keys)})"
                findings.add("root", f"{report.folder}: '{name}' in its manifest {other}")


def _looks_like_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST_NAME, INDEX_NAME)) or any(folder.glob("*.tar"))


def _rules(manifest: Manifest | None, decode: bool, report: SetReport) -> ImageRules:
    if manifest is None:
        return ImageRules(decode=decode)
    try:
        rules = image_rules(manifest.quality, manifest.encoder, decode)
    except ValueError as error:
        report.findings.add("manifest", f"{report.folder / MANIFEST_NAME}: {error}")
        return ImageRules(manifest.extension, decode=decode)
    for name in rules.unknown:
        report.lines.append(f"not checked: {IMAGE_FACTS[name]}, for the manifest's encoder has no '{name}'")
    return rules


def _tar_jobs(
    folder: Path, names: list[str], manifest: Manifest | None, index: pa.Table | None, rules: ImageRules
) -> Iterator[TarJob]:
    rows = rows_by_shard(index) if index is not None else {}
    for name in names:
        yield TarJob(
            path=folder / name,
            entry=manifest.tars[name] if manifest is not None else None,
            rows=rows.get(name, index[:0]).to_pylist() if index is not None else None,
            quality=manifest.quality if manifest is not None else None,
            crop_size=manifest.crop["size"] if manifest is not None else None,
            rules=rules,
        )


def _describe(folder: Path, manifest: Manifest | None, index: pa.Table | None, tars: list[TarReport]) -> str:
    parts = [f"{index.num_rows} samples" if index is not None else "no index"]
    if index is not None:
        splits = Counter({v["values"]: v["counts"] for v in pc.value_counts(index["split"].cast("string")).to_pylist()})
        parts[0] += f" ({', '.join(f'{split} {splits[split]}' for split in SPLITS)})"
    parts.append(f"{len(tars)} tars, {sum(tar.bytes for tar in tars)} bytes")
    if manifest is None:
        parts.append("no manifest")
    else:
        facts = [manifest.encoder.get(name) for name in ("name", "mode", "subsampling")]
        words = " ".join(str(fact) for fact in facts if fact is not None)
        parts.append(f"quality {manifest.quality}, {words}, {manifest.crop['size']} pixels")
    return f"{folder}: {'; '.join(parts)}"


def _read_with_stock_readers(
    report: SetReport,
    index: pa.Table,
    tars: list[TarReport],
    extension: str,
    quick: bool,
    workers: int,
    progress: Progress,
) -> None:
    # What is known to be broken is kept from readers that may crash on it.
    chosen = [tar.name for tar in tars if tar.sound and tar.idx]
    if quick:
        chosen = list({name.rpartition("-")[0]: name for name in reversed(chosen)}.values())[::-1]
    groups = [tuple(chosen[i : i + TARS_PER_JOB]) for i in range(0, len(chosen), TARS_PER_JOB)]
    parts = rows_of_groups(groups, rows_by_shard(index))
    jobs = (
        ReaderJob(reader, report.folder, names, [row for part in there for row in part.to_pylist()], extension)
        for reader in READERS
        for names, there in zip(groups, parts, strict=True)
    )
    merged: dict[str, ReaderReport] = {}
    with closing(ordered_map(read_with_stock_reader, jobs, workers)) as results:
        total = len(READERS) * len(groups)
        for part in progress(results, total=total, desc=f"{report.folder.name} stock readers", unit="part"):
            whole = merged.setdefault(part.reader, ReaderReport(part.reader, part.version))
            whole.samples += part.samples
            whole.tars += part.tars
            whole.findings.extend(part.findings)
    for whole in merged.values():
        report.lines.append(_describe_reader(whole))
        report.findings.extend(whole.findings)
    damaged, without = sum(not tar.sound for tar in tars), sum(tar.sound and not tar.idx for tar in tars)
    kept = [f"{damaged} damaged"] * bool(damaged) + [f"{without} without a right .idx"] * bool(without)
    if kept:
        report.lines.append(f"stock readers: kept from them were of {len(tars)} tars {' and '.join(kept)}")


def rows_of_groups(groups: list[tuple[str, ...]], rows: dict[str, pa.Table]) -> list[list[pa.Table]]:
    """Return the rows of each group of tars, tar by tar in the order of the index."""
    group_of = {name: i for i, names in enumerate(groups) for name in names}
    parts: list[list[pa.Table]] = [[] for _ in groups]
    for name, part in rows.items():
        if name in group_of:
            parts[group_of[name]].append(part)
    return parts


def _describe_reader(report: ReaderReport) -> str:
    if report.version is None:
        return f"{report.reader}: not installed, so not tried"
    wrong = report.findings.total
    verdict = f"{wrong} times not as in the index" if wrong else "keys, labels and bytes as in the index"
    return f"{report.reader} {report.version}: {report.samples} samples of {report.tars} tars, {verdict}"


def _first_difference(there: pa.Table, here: pa.Table) -> tuple[int, str, str] | None:
    """Row number, its sample there and its sample here, where two tables of equal length first differ."""
    same = None
    for name in ("key", "split"):
        equal = pc.equal(there[name].cast(pa.string()), here[name].cast(pa.string()))
        same = equal if same is None else pc.and_(same, equal)
    row = pc.index(same, False).as_py()
    if row < 0:
        return None
    a, b = (f"{table['key'][row].as_py()} ({table['split'][row].as_py()})" for table in (there, here))
    return row, a, b
