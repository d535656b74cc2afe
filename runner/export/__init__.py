"""Export a trained network as ONNX or ``torch.export``: ``python -m runner.export``."""
