"""YAML by the core schema of its version 1.2: `077` is 77, `off` is text, `1e-3` is a number.

PyYAML by itself reads version 1.1, where they are 63, false and text. All YAML of the project is read and written here.
"""

import re
from typing import Any, ClassVar

import yaml
from jsonargparse import set_dumper, set_loader

YAMLError = yaml.YAMLError

_SCALARS = {  # tag -> what it looks like, and what that begins with
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_LOADER):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that either version would take for something else."""


def _add_scalars(cls: Any) -> None:
    for name, (pattern, first) in _SCALARS.items():
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), first)


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_add_scalars(_Loader)
_add_scalars(_Dumper)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load_yaml(text: str | bytes) -> Any:
    """Return what a YAML document says, as plain values. Raises YAMLError."""
    try:
        return yaml.load(text, _Loader)  # a safe one
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:  # such as of `!!int x`
        raise YAMLError(f"a value can't be read ({error})") from error


def dump_yaml(content: Any, **options: Any) -> str:
    """Return plain values as YAML, in their order.

    Args:
        content: Mappings, lists, text, numbers, truth values, None.
        options: Of `yaml.dump`, such as `default_flow_style`.
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, **options)


def use_for_parsers() -> None:
    """Let jsonargparse read and print YAML by these rules."""
    set_loader("yaml", load_yaml, (YAMLError,))
    set_dumper("yaml", lambda content: dump_yaml(content, allow_unicode=True))
