"""Quantizing methods, one module each; each has its row in modelpress.api.v1alpha1.algorithms."""
