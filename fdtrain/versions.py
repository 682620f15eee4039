"""Which versions of the packages that matter are installed."""

from importlib import metadata

NAMED = ("torch", "timm", "deepspeed", "nvidia-dali-cuda130", "mlflow", "ray", "pyvips", "simplejpeg")
"""Those whose versions are always shown."""


def installed(names: tuple[str, ...] = NAMED) -> dict[str, str]:
    """Versions of those packages that are there."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def versions_in_words() -> str:
    """`fdtrain 0.1.0, torch 2.14.0, ...`, for records of a run."""
    return ", ".join(f"{name} {version}" for name, version in installed(("fdtrain", *NAMED)).items())
