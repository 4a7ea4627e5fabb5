"""Measurements of speed and memory, one topic a module; ``scripts.bench`` runs them."""
