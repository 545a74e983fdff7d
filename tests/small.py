"""A detector small enough to train in a test, with any parts: overrides for a recipe."""

SMALL = [
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "detector.width=32",
    "detector.heads=2",
    "encoder.layers=1",
    "encoder.feedforward=32",
    "decoder.layers=2",
    "decoder.feedforward=32",
]
