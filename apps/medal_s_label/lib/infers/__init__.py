"""Infer tasks: one network behind all models that the viewers list."""

from lib.infers.medal_s import MedalSInfer, Service

__all__ = ["MedalSInfer", "Service"]
