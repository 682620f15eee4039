"""`python -m fdtrain import-weights`: other people's checkpoints as model folders of ours."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_shards.schema import file_sha256, part_of, sync_path
from fdtrain.config import UserError

if TYPE_CHECKING:
    from fdtrain.models.imports import Imported

FORMS = ("mesonet", "deepfakebench", "multiple-attention", "timm")
"""Whose checkpoints there is a reader for, in `fdtrain.models.imports`; the command line has them without torch."""


def read(form: str, file: Path, name: str | None = None) -> "Imported":
    """What a published checkpoint holds, in our terms.

    Args: and Raises: as `import_weights`.
    """
    from fdtrain.models import imports

    imported: Imported = getattr(imports, f"read_{form.replace('-', '_')}")(file, name)
    return imported


def import_weights(form: str, file: Path, out: Path, name: str | None = None) -> None:
    """Make a model folder of a published checkpoint, for `evaluate --model` and `load_model`.

    Its `model.json` says where the weights came from: format, file and SHA-256.

    Args:
        form: One of `FORMS`.
        file: The checkpoint. Nothing in it is run.
        out: The folder; it may exist, empty.
        name: The model's name, which "timm" needs; the others find it.

    Raises:
        UserError: the file isn't what it should be, or `out` has something in it. Nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {out} exists and isn't an empty folder; name another")
    from fdtrain.models import create_model, save_model
    from fdtrain.models.state import fit

    imported = read(form, file, name)
    model = create_model(imported.name, **imported.options)
    fit(model, imported.state, file)
    source = {"format": form, "file": file.name, "sha256": file_sha256(file), **imported.facts}
    part = part_of(out)
    try:
        part.mkdir(parents=True)
        save_model(
            part,
            model.state_dict(),
            name=imported.name,
            options=imported.options,
            spec=imported.spec,
            facts={"imported": source},
        )
        for path in (*part.iterdir(), part):
            sync_path(path)
        part.replace(out)
        sync_path(out.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    tensors = len(model.state_dict())
    print(f"{out}: {imported.name} with {tensors} tensors of {file.name}, for {imported.spec.size} pixels")
