"""RT-DETR of the package `transformers`, with random weights, against the detector that it becomes."""

import pytest
import torch

import detrkit
from tests.zoo.test_transformers import BASIC, NAMES, QUERIES, WIDTH, answers, assert_same, batch, ours

transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "decoder_in_channels": [WIDTH] * 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "decoder_layers": 3,
    "num_queries": QUERIES,
    "id2label": NAMES,
}
R18 = {"backbone": BASIC, "encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
FORMS = {
    "R18": R18,
    "R18, trained norms, no attention": R18 | {"freeze_backbone_batch_norms": False, "encoder_layers": 0},
    "R18, no denoising": R18 | {"num_denoising": 0, "decoder_n_points": 2},
    "R50": {"backbone": {}, "encoder_layers": 2, "positional_encoding_temperature": 100},
}


def build(form: str):
    """A small model, all of whose weights and statistics are random."""
    options = {**SIZES, **FORMS[form]}
    backbone = transformers.RTDetrResNetConfig(**options.pop("backbone"), out_indices=[2, 3, 4])
    torch.manual_seed(0)
    model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                fan = {1: 100, 2: parameter.shape[-1]}.get(parameter.dim(), parameter[0].numel())
                parameter += 0.8 * torch.randn(parameter.shape) / fan**0.5
        for module in model.modules():
            if hasattr(module, "running_var"):
                module.weight.uniform_(0.8, 1.2), module.bias.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5), module.running_mean.normal_(0, 0.1)
    return model.eval()


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f == "R50" else f for f in FORMS])
def test_a_model_computes_the_same_on_any_shape(form):
    model, (images, _) = build(form), batch()
    fitted = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict())
    expected = answers(model, images, torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool))
    assert expected[1].std() > 0.01
    assert expected[0].std() > 0.1
    assert_same(ours(model.state_dict(), fitted.recipe, images, None), expected)
