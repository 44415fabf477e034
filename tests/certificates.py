"""Certificates of an authority of the tests', in folders as a machine of a cluster has them."""

from pathlib import Path

import trustme

from hostler.wire.identity import CA_FILE, CERT_FILE, KEY_FILE, Identity


def tls_folder(folder: Path, holder: Identity, ca: trustme.CA) -> Path:
    """Make the tls folder of `holder`, with a certificate by `ca`."""
    folder.mkdir(parents=True, exist_ok=True)
    issued = ca.issue_cert(holder.name)
    issued.private_key_pem.write_to_path(str(folder / KEY_FILE))
    issued.cert_chain_pems[0].write_to_path(str(folder / CERT_FILE))
    ca.cert_pem.write_to_path(str(folder / CA_FILE))
    return folder
