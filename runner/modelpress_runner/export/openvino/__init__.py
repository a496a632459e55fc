"""model.xml and model.bin: OpenVINO's own representation of a model."""
