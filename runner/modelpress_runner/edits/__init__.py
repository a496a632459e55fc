"""What compression did to a model, in a form that can be saved and replayed."""
