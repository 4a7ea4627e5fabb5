"""The Medal S network and the parts that the JSON configs assemble it from."""

from scripts.networks.known_structures import KnownStructures
from scripts.networks.mask_head import MaskEmbedding, MaskHead
from scripts.networks.medal_s import Features, MedalS
from scripts.networks.query_decoder import QueryDecoder, sinusoidal_position_code
from scripts.networks.text_projection import TextProjection
from scripts.networks.unet import PlainUNet

__all__ = [
    "Features",
    "KnownStructures",
    "MaskEmbedding",
    "MaskHead",
    "MedalS",
    "PlainUNet",
    "QueryDecoder",
    "TextProjection",
    "sinusoidal_position_code",
]
