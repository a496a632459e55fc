"""Models of the transformers library as a recipe's huggingFace names them: no code of the user's is needed."""
