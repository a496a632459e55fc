"""Recovery without training: what layers that lost inputs can still give, from calibration data without labels."""
