"""Published figures out of a YAML file, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_shards.yaml12 import YAMLError, load_yaml
from fdtrain.config import UserError

PACKAGED = Path(__file__).with_name("references.yaml")


@dataclass(frozen=True)
class Reference:
    """A published model.

    Args:
        name: As its source calls it.
        citation: Of the source.
        protocol: What its numbers are, in a line.
        values: metric -> column -> value.
    """

    name: str
    citation: str
    protocol: str
    values: dict[str, dict[str, float]]


def read_references(path: Path) -> list[Reference]:
    """The models of such a file as `references.yaml`. Raises UserError where it is another, with the place."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"references: {path} can't be read ({error.strerror}); name another file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"references: {path} is not YAML ({' '.join(str(error).split())})") from None
    found: list[Reference] = []
    for i, source in enumerate(_get(content, "sources", list, str(path))):
        place = f"{path}: sources[{i}]"
        citation, protocol = (_get(source, key, str, place) for key in ("citation", "protocol"))
        for name, metrics in _get(source, "models", dict, place).items():
            values = {metric: _numbers(metrics, metric, f"{place}.models.{name}") for metric in metrics}
            found.append(Reference(str(name), citation.strip(), protocol.strip(), values))
    return found


def _numbers(metrics: Any, metric: str, place: str) -> dict[str, float]:
    from fdtrain.report.subsets import COLUMNS

    if metric not in ("auc", "acc"):
        raise UserError(f"references: {place}: {metric!r} is no metric of such a file; allowed are auc and acc")
    columns = _get(metrics, metric, dict, place)
    for column, value in columns.items():
        if column not in COLUMNS:
            raise UserError(f"references: {place}.{metric}: {column!r} is no column; allowed are {', '.join(COLUMNS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"references: {place}.{metric}.{column}: {value!r} is no number from 0 to 1")
    return {column: float(value) for column, value in columns.items()}


def _get(content: Any, key: str, kind: type, place: str) -> Any:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"references: {place}: {key!r} is missing or no {kind.__name__}; see fdtrain's references.yaml")
    return value
