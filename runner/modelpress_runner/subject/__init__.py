"""The dense model with what trains and scores it."""
