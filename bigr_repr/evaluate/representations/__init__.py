"""Representations to benchmark: BiGR models, their bits, untrained networks, timm backbones, pixels."""
