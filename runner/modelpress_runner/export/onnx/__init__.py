"""model.onnx: a model for runtimes that need no torch."""
