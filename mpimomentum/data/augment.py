"""Random changes to training images: pure functions of the pixels and a generator.

References
----------
K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2: "4 pixels are padded on each side, and a 32×32 crop is randomly sampled from the padded
image or its horizontal flip".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""(pixels uint8 (n, c, h, w), generator) -> changed pixels of the same shape, the caller's own."""


@dataclass(frozen=True)
class CropAndFlip:
    """Shift each image by up to `padding` pixels in either direction; mirror half of them.

    Parameters
    ----------
    padding : int
        Black pixels put around an image before one crop of the old size is taken, anywhere.
    flip : bool
        Whether an image is mirrored left to right, with probability ½.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Change each image of a batch by itself.

        Parameters
        ----------
        x : torch.Tensor
            Pixels, shape (n, channels, height, width), any dtype and device; not written.
        generator : torch.Generator
            On the CPU. Equal states give equal images, on every device.

        Returns
        -------
        torch.Tensor
            Same shape and dtype; new memory.
        """
        n, _, height, width = x.shape
        shifts = 2 * self.padding + 1
        top, left = torch.randint(shifts, (2, n), generator=generator)
        mirrored = torch.randint(2, (n,), generator=generator).bool() & self.flip
        top, left, mirrored = (v.to(x.device, non_blocking=True) for v in (top, left, mirrored))
        windows = pad(x, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        crops = windows[torch.arange(n, device=x.device), :, top, left]
        return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
