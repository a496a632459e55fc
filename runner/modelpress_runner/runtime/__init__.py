"""State that torch keeps for the whole process."""
