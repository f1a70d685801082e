"""Convolution, ReLU and max-pooling for people who write their own training loops: arrays in, arrays out."""

__version__ = "0.1.0"
