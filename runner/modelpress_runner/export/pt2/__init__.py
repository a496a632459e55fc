"""Programs without pickle: model.pt2."""
