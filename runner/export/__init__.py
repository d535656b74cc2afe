"""A trained network for use elsewhere, as ONNX or ``torch.export``: ``python -m runner.export``."""
