"""The runner: loads a model, compresses it, proves and measures the result, writes the artifacts. torch lives here."""
