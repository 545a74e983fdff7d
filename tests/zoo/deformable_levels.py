"""A small Deformable DETR of four levels: weights by rule under official names, feature maps, and their padding.

`deformable_levels.safetensors` holds what the implementation in Hugging Face's transformers 5.24.0 makes of them on a
CPU in float32, with box refinement and with two stages; the shared cases have one level only.
"""

import torch

from tests.parity import golden

SHAPES = ((12, 16), (6, 8), (3, 4))
CHANNELS = (128, 256, 512)


def fill(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes, with numbers that follow from the name alone; norms around one."""
    filled = {}
    for name, tensor in state.items():
        own = name.removeprefix("transformer.decoder.") if "_embed." in name else name  # a repeat is the same tensor
        values = golden.random_state(own).standard_normal(tuple(tensor.shape))
        if tensor.dim() > 1:
            values = values / tensor[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values = 0.3 * values
        filled[name] = torch.from_numpy(values).float()
    return filled


def scene() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Feature maps of two images, and the mask of their 96 x 128 pixels; the second is padded."""
    maps = [
        torch.from_numpy(golden.random_state(f"features {c}").standard_normal((2, c, h, w))).float()
        for c, (h, w) in zip(CHANNELS, SHAPES, strict=True)
    ]
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 60:], mask[1, :, 85:] = True, True
    return maps, mask
