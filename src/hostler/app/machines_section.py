"""Settings for more than one machine (docs/design/hosts.md): of the controller's, and of a host."""

from hostler.app.section import Section
from hostler.core.errors import ConfigError


class ControlConfig(Section, frozen=True, kw_only=True):
    """For other machines: they join there and report. Off without this section and `--tls`."""

    host: str = "0.0.0.0"  # it is for others: who has no certificate can only try a token
    port: int = 8101  # 0: the kernel picks a free one
    relay_port: int = 0  # before the models here, for gateways on other machines, which are told it
    names: tuple[str, ...] = ()  # DNS names or addresses that others call this machine by
    tls_ca: str = ""  # PEM file of an authority of yours; "": one is made in the state folder
    tls_ca_key: str = ""  # its key, to sign for machines that join; without it they bring their own
    tls_cert: str = ""  # this machine's certificate, PEM, by tls_ca; "": made with tls_ca_key
    tls_key: str = ""  # its key

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("control: tls_cert and tls_key belong together; set both or none")
        if self.tls_ca and not (self.tls_ca_key or self.tls_cert):
            raise ConfigError(
                "control: tls_ca needs tls_ca_key, to make certificates with, or tls_cert and tls_key"
            )
        if (self.tls_cert or self.tls_ca_key) and not self.tls_ca:
            raise ConfigError("control: tls_cert and tls_ca_key need tls_ca, the authority")
        for name in self.names:
            if not name or not name.isascii() or "/" in name or " " in name:
                raise ConfigError(f"control.names: {name!r} is no DNS name and no address")


class RayConfig(Section, frozen=True, kw_only=True):
    """A Ray cluster that finds the machines (`hostler up --ray`); needs the extra `hostler[ray]`."""

    address: str = ""  # of its head, HOST:PORT; "auto": the one on this machine; "": none


class HostConfig(Section, frozen=True, kw_only=True):
    """Of a machine that works for a controller on another one (`hostler host run`)."""

    fence_after_s: float = 0.0  # no controller heard for so long: no new requests; 0: never
    silence_s: float = 5.0  # of a controller that tells every second: it is called again
    answer_timeout_s: float = 5.0  # of what is told to a controller
    dismissed_after_s: float = 10.0  # told so long that no such host is known: its models end

    def __post_init__(self) -> None:
        if self.silence_s < 2 or self.answer_timeout_s <= 0:  # it is told every second
            raise ConfigError(
                "host: need silence_s >= 2 and answer_timeout_s > 0, got "
                f"{self.silence_s:g}, {self.answer_timeout_s:g}"
            )
