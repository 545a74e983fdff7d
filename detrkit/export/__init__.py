"""Detectors as files that run without detrkit: ONNX, PyTorch's exported programs, OpenVINO."""
