"""Whether what is installed is what this release was written for."""

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fdtrain.doctor.report import Finding
from fdtrain.versions import NAMED, installed

DISTRIBUTION = "fdtrain"


def check_packages() -> Iterator[Finding]:
    """Python and the installed packages against the ranges that this project's own metadata gives."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Finding(
            "warning",
            "packages",
            f"{DISTRIBUTION} isn't installed in this Python, so what it needs isn't known",
            "pip install -e . in the checkout",
        )
        return
    python, wanted = platform.python_version(), about["Requires-Python"]
    if wanted is None or SpecifierSet(wanted).contains(python, prereleases=True):
        yield Finding("ok", "Python", python)
    else:
        yield Finding("failure", "Python", f"{python}, and {wanted} is needed", "make an environment with such a one")
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    faults = [finding for requirement in needed if (finding := _check(requirement))]
    versions = installed(NAMED)
    others = len([one for one in needed if one.name not in NAMED]) - len(
        [finding for finding in faults if finding.what not in NAMED]
    )
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("ok", "packages", f"{shown}; {others} others as required")
    yield from faults


def _check(requirement: Requirement) -> Finding | None:
    name, allowed = requirement.name, requirement.specifier
    install = f"pip install '{name}{allowed}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("failure", name, f"isn't installed; {allowed} is needed", install)
    if allowed.contains(version, prereleases=True):
        return None
    lower = [one for one in allowed if one.operator in (">=", ">", "==", "~=")]
    if any(Version(version) < Version(one.version) for one in lower):
        return Finding("failure", name, f"{version} is too old; {allowed} is needed", install)
    return Finding("warning", name, f"{version} is newer than what was tested, {allowed}", install)


def compare_packages(places: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Whether all ranks have the same versions.

    Args:
        places: What each rank has, by its label.
    """
    first, *others = places
    for place in others:
        for name in sorted(places[first].keys() | places[place].keys()):
            here, there = places[place].get(name, "none"), places[first].get(name, "none")
            if here != there:
                yield Finding(
                    "failure",
                    "same versions",
                    f"{name} {here} at {place}, {there} at {first}",
                    "use one environment on all hosts",
                )
                return
    yield Finding("ok", "same versions", f"on all {len(places)} ranks")
