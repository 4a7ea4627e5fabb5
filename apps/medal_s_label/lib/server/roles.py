"""MONAI Label's role check with the PyJWT that is installed.

MONAI Label 0.8.5 verifies tokens without saying which signatures it accepts. PyJWT 2 refuses that, so every token,
also a valid one, was answered 401.
"""

from __future__ import annotations

import functools
import logging
from types import SimpleNamespace

import jwt
import requests
from monailabel.config import settings
from monailabel.endpoints.user import auth

logger = logging.getLogger(__name__)

# An identity provider's public key can verify these only; "none" and shared secrets are no proof.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]


def mend_token_check() -> None:
    """Name the signatures that count, and fetch the realm's key now: at a request it would block the event loop.

    Does nothing where roles are not checked (``MONAI_LABEL_AUTH_ENABLE``).
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return
    auth.jwt = SimpleNamespace(decode=functools.partial(jwt.decode, algorithms=ALGORITHMS))
    try:
        auth.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    except (requests.RequestException, KeyError, ValueError) as error:
        logger.warning("the realm of MONAI_LABEL_AUTH_REALM_URI gives no key now (%s)", type(error).__name__)
