"""SAP's attention in DAB-DETR of the package transformers: its side codes (PECA) and side-directed Gaussians (SDG).

Each decoder layer's cross-attention is replaced by one of four terms. The point's code stays DAB-DETR's own, scaled by
content and modulated by width and height; the boxes of the sides are read off the code that its decoder makes of them.
"""

import torch
from transformers import DabDetrConfig, DabDetrForObjectDetection

from detrkit import part
from detrkit.attention.placed import PlacedAttention
from detrkit.position import coded_boxes
from detrkit.structures import Memory

SIZES = {"width": 32, "heads": 4}
config = DabDetrConfig(
    backbone="resnet18",
    use_timm_backbone=True,
    use_pretrained_backbone=False,
    hidden_size=SIZES["width"],
    encoder_attention_heads=SIZES["heads"],
    decoder_attention_heads=SIZES["heads"],
    encoder_layers=1,
    decoder_layers=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    num_queries=20,
    num_labels=5,
    auxiliary_loss=True,
)
torch.manual_seed(0)
model = DabDetrForObjectDetection(config).train()

# glue
seen, decoder = {}, model.model.decoder
model.model.backbone.register_forward_hook(lambda _, given, found: seen.update(valid=found[0][-1][1]))
decoder.ref_point_head.register_forward_pre_hook(lambda _, given: seen.update(boxes=coded_boxes(given[0])))


class SapAttention(PlacedAttention):
    def forward(self, hidden_states, encoder_hidden_states, object_queries, query_sine_embed, **rest):
        memory = Memory(encoder_hidden_states, object_queries, (seen["valid"].shape[-2:],), ~seen["valid"].flatten(1))
        update = super().forward(hidden_states, seen["boxes"], memory, {"point": query_sine_embed})
        return self.norm(hidden_states + update), None


TERMS = part("cross_attention", "terms", terms=["content", "point", "side", "side_directed_gaussian"])
for layer in decoder.layers:
    sap = SapAttention(**SIZES, cross_attention=TERMS, positions=[part("query_position", "side", embedding="none")])
    sap.norm, layer.cross_attn = layer.cross_attn.cross_attn_layer_norm, sap
# end of glue

images, pixel_mask = torch.randn(2, 3, 64, 96), torch.ones(2, 64, 96)
pixel_mask[1, :, 64:] = 0  # padded
box = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
labels = [{"class_labels": torch.tensor([3]), "boxes": box}, {"class_labels": torch.tensor([1]), "boxes": box / 2}]
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(4):
    loss = model(images, pixel_mask=pixel_mask, labels=labels).loss
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
assert losses[-1] < losses[0]
gradients = {name: p.grad for name, p in model.named_parameters() if ".cross_attn." in name}
assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
new = [name for name in gradients if ".terms.side" in name]
print(f"loss {losses[0]:.2f} to {losses[-1]:.2f} in 4 steps; gradients in all {len(new)} tensors of the two terms")
