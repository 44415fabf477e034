"""One process an identity: the second one to claim it must not even touch its sockets."""

import hashlib
import socket

from hostler.core.fleet import WorkerSpec


def claim(spec: WorkerSpec) -> socket.socket | None:
    """Return what holds this instance's identity while it is open; None: another process holds it.

    It is the name of an abstract Unix socket: the kernel gives it to one process, and takes it back
    when that process ends, however it ends. Nobody ever connects to it.
    """
    words = f"{spec.registry_socket}\0{spec.instance_id}".encode()
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(b"\0hostler-" + hashlib.sha256(words).hexdigest().encode())
    except OSError:
        holder.close()
        return None
    return holder
