"""The MLflow model registry: versions, who is champion, what a version says of itself, and the router over them."""

from fdtrain.registry.card import model_card
from fdtrain.registry.challenge import CHAMPION, Incumbent, Verdict, fetch_champion, judge
from fdtrain.registry.versions import CHALLENGER, Registered, register, registered_name

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Incumbent",
    "Registered",
    "Verdict",
    "fetch_champion",
    "judge",
    "model_card",
    "register",
    "registered_name",
]
