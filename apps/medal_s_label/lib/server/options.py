"""What the person who starts the server may set with ``--conf``, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib.server.errors import StartupError

_MIB = 2**20


@dataclass(frozen=True)
class ServerOptions:
    """Limits of the server.

    Attributes:
        upload_limit: bytes that the body of one request may have.
        infer_parallel: inferences that run at the same time.
        infer_waiting: inferences that may wait for their turn; the next one is answered 503.
        allowed_hosts: names under which the server may be addressed besides the loopback ones.
    """

    upload_limit: int = 2048 * _MIB
    infer_parallel: int = 1
    infer_waiting: int = 8
    allowed_hosts: tuple[str, ...] = ()

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> ServerOptions:
        """Options from ``--conf upload_limit_mb 512 --conf infer_parallel 1 --conf infer_waiting 4 --conf
        allowed_hosts label.example.org``; what is absent keeps its default.

        Raises:
            StartupError: a value that is not a positive whole number (``infer_waiting`` may be 0).
        """
        default = cls()
        return cls(
            upload_limit=_whole(conf, "upload_limit_mb", default.upload_limit // _MIB, least=1) * _MIB,
            infer_parallel=_whole(conf, "infer_parallel", default.infer_parallel, least=1),
            infer_waiting=_whole(conf, "infer_waiting", default.infer_waiting, least=0),
            allowed_hosts=tuple(host.strip() for host in str(conf.get("allowed_hosts", "")).split(",") if host.strip()),
        )


def _whole(conf: Mapping[str, str], key: str, default: int, least: int) -> int:
    """A whole number, ``least`` or more, from the texts of ``--conf``."""
    text = str(conf.get(key, default)).strip()
    if not text.isdecimal() or int(text) < least:
        raise StartupError(f"--conf {key} must be a whole number, {least} or more, got {text!r}")
    return int(text)
