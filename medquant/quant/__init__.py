"""Quantization of any convolutional torch network: formats, plan, capture, folding, calibration, training and lowering to integers."""
