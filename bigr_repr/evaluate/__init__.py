"""How good is a representation: probes and nearest neighbours on features that are already extracted."""
