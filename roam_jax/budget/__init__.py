"""What a training step needs on devices that are not there: bytes, traffic, time, what fits."""
