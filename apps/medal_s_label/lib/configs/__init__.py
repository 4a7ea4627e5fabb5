"""Which models the app offers, and what the viewers are told about them."""

from lib.configs.models import ModelConfig, plan_models

__all__ = ["ModelConfig", "plan_models"]
