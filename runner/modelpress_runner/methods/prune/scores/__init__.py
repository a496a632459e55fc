"""Ways to score a model's units, one module each."""
