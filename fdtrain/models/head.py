"""How the last layer of a detector begins where no weights come for it."""

from torch import nn

_SCALE = 0.01


def draw_head(head: nn.Linear) -> nn.Linear:
    """Draw a classification head, in place, whose first loss is that of a guess: ln 2 of cross entropy.

    With features of root mean square r the logits have a deviation of r / 173, whatever their number; backbones have r
    from 0.3 (ImageNet weights) to 3 (a new MesoNet). After the first steps of Adam, which move a weight by the learning
    rate whatever its gradient, the head points where the labels say. A large random one instead makes a pretrained
    backbone fit that random direction first. It isn't 0, so that gradients reach the backbone from the first step on.

    Call it before weights are loaded, which then replace it where they have a head that fits.

    Args:
        head: The layer that gives the logits; drawn from torch's global generator, as all of the network.

    Returns:
        The layer itself.
    """
    bound = _SCALE / head.in_features**0.5
    nn.init.uniform_(head.weight, -bound, bound)
    nn.init.zeros_(head.bias)
    return head
