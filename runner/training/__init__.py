"""Training: pixels become weights, predictions and a result. The step, the loop, one run."""
