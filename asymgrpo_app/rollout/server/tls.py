"""Certificates of sampler servers."""

import hashlib
import re
import ssl
from pathlib import Path

from asymgrpo_app.errors import UserError
from asymgrpo_app.rollout.server.auth import read_secret

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def fingerprint(certificate_file: str, key: str) -> bytes:
    """SHA-256 of the first certificate in a PEM file, 32 bytes.

    Args:
        certificate_file: Path.
        key: The option that names the file, for the message.

    Raises:
        UserError: It cannot be read, or holds no certificate.
    """
    try:
        found = _PEM.search(Path(certificate_file).read_text(encoding="ascii"))
        if found is not None:
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest()
    except OSError as error:
        raise UserError(f"{key} {certificate_file} cannot be read ({error.strerror}).") from error
    except ValueError:  # not ASCII, or not base64
        pass
    raise UserError(f"{key} {certificate_file} holds no certificate (-----BEGIN CERTIFICATE-----).")


def check_pair(certificate_file: str | None, key_file: str | None) -> None:
    """Check that a server has a certificate with the key that belongs to it, or neither.

    Raises:
        UserError: It does not; the message names the option.
    """
    if certificate_file is None and key_file is None:
        return
    if certificate_file is None or key_file is None:
        raise UserError("--certificate_file and --key_file belong together: give both, or none for http.")
    fingerprint(certificate_file, "--certificate_file")
    read_secret(key_file, "--key_file")
    try:
        # An encrypted key would ask for its password on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, password=lambda: " ")
    except (ssl.SSLError, ValueError) as error:
        raise UserError(
            f"--key_file {key_file} is not the unencrypted key of --certificate_file {certificate_file}: TLS needs a "
            "pair."
        ) from error
