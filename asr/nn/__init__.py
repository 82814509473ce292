"""Layers used by two or more stacks: masking, masked batch norm, convolutions, look-ahead."""
