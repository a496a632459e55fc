"""What scripts of other tools import, so that they run with one import changed."""
