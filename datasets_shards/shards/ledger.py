"""What a root knows of sets that aren't finished, so that a later call, or another task, goes on with the same thing.

    <root>/.packing/q77.json                 what the set is made from
    <root>/.packing/q77/train-000000.json    a finished tar, as the manifest will list it, and its images' CRC-32

Both are written before the tar gets its name, and go away when the set gets its manifest.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from datasets_shards.errors import InputError, first_few
from datasets_shards.schema import MANIFEST_NAME, Quality, TarEntry, quality_name, sync_path, write_atomic

LEDGER_NAME = ".packing"


class Ledger:
    """The record of one set that isn't finished; `begin` comes first."""

    def __init__(self, root: Path, quality: Quality) -> None:
        self.folder = root / quality_name(quality)
        self._plan = root / LEDGER_NAME / f"{self.folder.name}.json"
        self._tars = root / LEDGER_NAME / self.folder.name
        self._digest = ""

    def begin(self, plan: dict[str, Any]) -> None:
        """Write down what the set is made from, or check it against what is written.

        Raises:
            InputError: the set was begun with something else, or its folder holds something that no packer wrote.
        """
        plan = json.loads(json.dumps(plan))
        if self._plan.exists():
            begun = _read(self._plan)
            if begun != plan:
                raise InputError(
                    f"{self.folder}: was begun otherwise and isn't finished: {first_few(_differences(begun, plan))}; "
                    f"finish it with the settings of before, or delete {self.folder} and {self._plan.parent}"
                )
            self._digest = _digest_of(plan)
            return
        if self.folder.is_dir() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise InputError(f"{self.folder}: holds files that no unfinished pack knows of; move them away")
        self._tars.mkdir(exist_ok=True)
        write_atomic(self._plan, json.dumps(plan, indent=1).encode())  # first, for another task may begin as well
        sync_path(self._plan.parent)
        self.folder.mkdir(exist_ok=True)
        self._digest = _digest_of(plan)

    def finished(self) -> dict[str, TarEntry]:
        """The finished tars, by file name.

        Raises:
            InputError: a tar isn't the one that was recorded.
        """
        entries = {}
        # The tars first: another task may finish one meanwhile, and its record is there before it.
        for tar in sorted(self.folder.glob("*.tar")):
            path = (self._tars / tar.name).with_suffix(".json")
            if not path.exists():
                raise InputError(f"{tar}: no packer recorded this tar; delete it")
            record = _read(path)
            if record.pop("plan", None) != self._digest:  # two tasks began at the same moment
                raise InputError(f"{tar}: was packed with other settings than this call has; delete it and {path}")
            crcs = record.pop("crc32", None)
            whole = record.keys() == {field.name for field in fields(TarEntry)} and isinstance(crcs, list)
            if not whole or len(crcs) != record["samples"]:
                raise InputError(f"{path}: not the record of a tar; delete it and {tar}")
            entry = TarEntry(**record)
            if tar.stat().st_size != entry.bytes or not tar.with_suffix(".idx").exists():
                raise InputError(f"{tar}: isn't what was packed ({entry.bytes} bytes and an index); delete it")
            entries[tar.name] = entry
        return entries

    def crcs(self, name: str) -> list[int]:
        """The CRC-32 of every image in one of the finished tars, in its order."""
        crcs: list[int] = _read((self._tars / name).with_suffix(".json"))["crc32"]
        return crcs

    def record(self, name: str, entry: TarEntry, crcs: list[int]) -> None:
        """Write down a tar that is about to get its name, with the CRC-32 of every sample's image."""
        content = asdict(entry) | {"plan": self._digest, "crc32": crcs}
        write_atomic((self._tars / name).with_suffix(".json"), json.dumps(content).encode())
        sync_path(self._tars)  # a tar that outlives a crash without its record would be nobody's

    def end(self) -> None:
        """Forget the set: it has its manifest."""
        shutil.rmtree(self._tars, ignore_errors=True)
        self._plan.unlink(missing_ok=True)


def drop_empty_sets(root: Path) -> None:
    """Forget sets that were begun and have neither a tar nor a manifest, and what is left of finished ones."""
    for plan in (root / LEDGER_NAME).glob("*.json"):
        folder = root / plan.stem
        if (folder / MANIFEST_NAME).exists() or not any(folder.glob("*.tar")):
            shutil.rmtree(plan.with_suffix(""), ignore_errors=True)
            plan.unlink()
            with suppress(OSError):  # the finished set
                folder.rmdir()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); delete it and the set's folder") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not what a packer writes; delete it and the set's folder")
    return content


def _digest_of(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = {**there, **here}
        return [line for key in keys for line in _differences(there.get(key), here.get(key), f"{name} {key}".strip())]
    return [] if there == here else [f"{name} {there} there, {here} here"]
