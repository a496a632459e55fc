"""Distillation: what a student learns from a teacher's outputs and inner layers."""
