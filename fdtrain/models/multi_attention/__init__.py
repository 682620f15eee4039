"""The multi-attentional network (Zhao et al., "Multi-attentional Deepfake Detection", CVPR 2021, arXiv 2103.02406)."""

from fdtrain.models.multi_attention.centers import RegionCenters
from fdtrain.models.multi_attention.network import MultiAttentionNetwork, MultiAttentionOutput

__all__ = ["MultiAttentionNetwork", "MultiAttentionOutput", "RegionCenters"]
