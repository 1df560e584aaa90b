"""What can be benchmarked: BiGR models, their bits, untrained networks, timm backbones, pixels."""
