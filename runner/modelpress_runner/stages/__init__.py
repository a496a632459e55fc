"""Stages of a recipe, each a list of steps."""
