"""The tricks: pure functions of tensors and numbers, with randomness passed in.

Shapes: N images in a batch, C channels, H height, W width, S output size, K classes, V views.
"""
