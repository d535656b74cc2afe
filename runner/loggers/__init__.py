"""Copies of a run's numbers for TensorBoard, MLflow, Weights & Biases and Trackio."""
