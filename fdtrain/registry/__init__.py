"""The MLflow model registry: versions, who is champion, what a version says of itself, and the router over them."""

from fdtrain.registry.card import model_card
from fdtrain.registry.challenge import (
    CHAMPION,
    Incumbent,
    Verdict,
    fetch_champion,
    fetch_version,
    incomparable,
    judge,
)
from fdtrain.registry.crown import crown
from fdtrain.registry.versions import CHALLENGER, Registered, conclude_version, register, registered_name

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Incumbent",
    "Registered",
    "Verdict",
    "conclude_version",
    "crown",
    "fetch_champion",
    "fetch_version",
    "incomparable",
    "judge",
    "model_card",
    "register",
    "registered_name",
]
