"""Files that a recipe names."""
