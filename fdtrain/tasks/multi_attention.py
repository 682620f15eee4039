"""How the multi-attentional network learns (Zhao et al., CVPR 2021, sections 3.3 and 3.4)."""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from fdtrain.config import LossConfig, MultiAttentionConfig, UserError
from fdtrain.models import InputSpec
from fdtrain.models.multi_attention import MultiAttentionNetwork, MultiAttentionOutput
from fdtrain.tasks.base import Task, require_compiler
from fdtrain.tasks.guided import degrade
from fdtrain.tasks.losses import create_loss
from fdtrain.tasks.regional import CenterUpdate, regional_loss

Stage = Literal["backbone", "head", "whole"]


class MultiAttentionTask(Task):
    """The network's own losses, in up to three stages.

    - "backbone", the first `backbone_epochs`: the backbone learns by its own classifier, and is what is evaluated. The
      rest is as it was made, so none of these models is a candidate for the best.
    - "head", the next `head_epochs`: the rest learns by all losses, the backbone stays as it is.
    - "whole": everything learns but the backbone's classifier, which takes no part any more.

    Args:
        model: The network.
        spec: Its input.
        loss: Of the logits, both of an image and of its degraded self.
        config: Weights of the losses, epochs of the stages.
        freeze: As of `Task`.

    Raises:
        UserError: as of `Task`, or nothing is left to train in one of the stages.
    """

    model: MultiAttentionNetwork
    stage: Stage

    def __init__(
        self,
        model: MultiAttentionNetwork,
        spec: InputSpec,
        loss: LossConfig,
        config: MultiAttentionConfig,
        freeze: Sequence[str] = (),
    ) -> None:
        self.config = config  # first of all, since making a task starts its first epoch
        super().__init__(model, spec, freeze)
        self.loss = create_loss(loss)
        self._describe: Callable[[Tensor], MultiAttentionOutput] = model.describe
        self._backbone_logits: Callable[[Tensor], Tensor] = model.backbone_logits
        self.center_update = CenterUpdate(*model.centers.centers.shape)
        for epoch in (config.backbone_epochs + config.head_epochs, config.backbone_epochs, 0):
            self.start_epoch(epoch)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise UserError(
                    f"model.freeze: {', '.join(freeze)} leaves nothing to train in epoch {epoch}, where the stage "
                    f"'{self.stage}' of multi_attention begins; freeze less, or leave the stage out"
                )

    def start_epoch(self, epoch: int) -> None:
        """See `Task`. The centers' rate decays from the first epoch that uses them."""
        self.stage = self._stage(epoch)
        self.is_selectable = self.stage != "backbone"
        backbone = self.model.backbone
        self.train_only(backbone if self.stage == "backbone" else self.model)
        if self.stage != "backbone":
            (backbone if self.stage == "head" else backbone.classifier).requires_grad_(False)
        epochs = max(epoch - self.config.backbone_epochs, 0)
        self.model.centers.rate.fill_(self.config.center_rate * self.config.center_decay**epochs)

    def compile_part(self, part: Literal["on", "backbone"]) -> None:
        """See `Task`. Training calls the network by these two methods."""
        if part == "backbone":
            super().compile_part(part)
        else:
            require_compiler()
            self._describe = torch.compile(self.model.describe)
            self._backbone_logits = torch.compile(self.model.backbone_logits)

    def train(self, mode: bool = True) -> Self:
        """See `Task`. A backbone that stays as it is has neither dropout nor stochastic depth."""
        super().train(mode)
        if self.stage == "head":
            self.model.backbone.eval()
        return self

    def _stage(self, epoch: int) -> Stage:
        if epoch < self.config.backbone_epochs:
            return "backbone"
        return "head" if epoch < self.config.backbone_epochs + self.config.head_epochs else "whole"

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Task`. Besides "loss" and "acc": "ce", "regional", "ce_augmented" and "match", unweighted.

        A loss whose weight is 0 takes no part.
        """
        images, config = self.prepare(images), self.config
        if self.stage == "backbone":
            logits = self._backbone_logits(images)
            loss = self.loss(logits, labels)
            return {"loss": loss, "acc": _accuracy(logits, labels), "ce": loss.detach()}
        seen = self._describe(images)
        losses = {"ce": (1.0, self.loss(seen.logits, labels))}
        if config.regional_weight:
            centers = self.model.centers
            distances = config.margins, config.center_distance
            regional = regional_loss(seen.regions, labels, centers.centers, centers.rate, *distances)
            losses["regional"] = config.regional_weight, regional
        self._accumulate(0, seen.regions, labels)
        if config.augmented_weight or config.match_weight:
            changed, chosen = degrade(images, seen.maps.detach())
            again = self._describe(changed)
            if config.augmented_weight:
                losses["ce_augmented"] = config.augmented_weight, self.loss(again.logits, labels)
            if config.match_weight:
                losses["match"] = config.match_weight, match_loss(seen.regions, again.regions, chosen)
            self._accumulate(1, again.regions, labels)
        total = torch.stack([weight * value for weight, value in losses.values()]).sum()
        parts = {name: value.detach() for name, (_, value) in losses.items()}
        return {"loss": total, "acc": _accuracy(seen.logits, labels), **parts}

    def _accumulate(self, pass_number: int, regions: Tensor, labels: Tensor) -> None:
        if self.training:
            self.center_update.accumulate(pass_number, regions.detach(), labels)

    def end_step(self) -> None:
        """See `Task`. The centers move on."""
        if self.stage != "backbone":
            self.center_update.apply_to(self.model.centers.centers, self.model.centers.rate)

    def logits(self, images: Tensor) -> Tensor:
        """See `Task`."""
        return self.model.backbone_logits(images) if self.stage == "backbone" else super().logits(images)


def match_loss(regions: Tensor, changed: Tensor, chosen: Tensor) -> Tensor:
    """Mean over batch and maps of ||V[m] - V'[m]||, 0 for the map under which an image was degraded; in fp32.

    Args:
        regions: V, float `[B, M, C]`.
        changed: V', of the degraded images.
        chosen: int64 `[B]`, the map of each.
    """
    with torch.autocast(regions.device.type, enabled=False):
        # The gradient of a norm is 0 where the norm is 0.
        distances = torch.linalg.vector_norm(regions.float() - changed.float(), dim=2)
        others = torch.arange(distances.shape[1], device=chosen.device) != chosen[:, None]
        return (distances * others).mean()


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()
