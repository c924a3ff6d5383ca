"""ResNet-20 and ResNet-56 that others trained."""
