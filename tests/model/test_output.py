"""What a detector's predictions say of their own parts."""

import pytest
import torch

from detrkit.structures import Output


def test_a_layer_is_counted_from_either_end():
    content = tuple(torch.full((2, 4, 8), float(layer)) for layer in range(3))
    output = Output(torch.rand(3, 2, 4, 5), torch.rand(3, 2, 4, 4), content=content)
    for index, place in ((0, 0), (2, 2), (-1, 2), (-3, 0)):
        layer = output.layer(index)
        assert torch.equal(layer.logits, output.logits[place : place + 1])
        assert torch.equal(layer.boxes, output.boxes[place : place + 1])
        assert layer.content is not None
        assert [one[0, 0, 0].item() for one in layer.content] == [place]
    for index in (3, -4):
        with pytest.raises(IndexError):
            output.layer(index)
