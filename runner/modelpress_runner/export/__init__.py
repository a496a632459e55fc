"""Models on disk, without pickle: the program (model.pt2) and the weights (model.safetensors, shrink.json)."""
