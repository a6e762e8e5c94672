"""What of the configuration concerns the log, as one small value.

`LogSettings.from_config` reads the deployment's configuration and, for the embedded server, the files that
`servicekit.nats_server` left in the run directory. Tests make one directly.
"""

from dataclasses import dataclass
from pathlib import Path

from servicekit.config import Config
from servicekit.nats_server import read_password, read_url

DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How to reach NATS as one service, and what the streams must be like.

    Ages in seconds, sizes in bytes.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_path: Path | None = None
    tls_ca_path: Path | None = None
    partitions: int = 16
    input_max_age_s: float = DAY_S
    output_max_age_s: float = 7 * DAY_S
    max_bytes: int = 10 * 1024**3
    replicas: int = 1

    @classmethod
    def from_config(cls, config: Config, service: str) -> "LogSettings":
        """Return the settings of `service`. With the embedded server its files must be there already.

        Raises:
            FileNotFoundError: the embedded server was never prepared in this run directory.
        """
        nats, log = config.nats, config.log
        urls = tuple(dict.fromkeys([*([nats.url] if nats.url else []), *nats.urls]))
        user, password = nats.user, str(nats.password) if nats.password else None
        if nats.embedded:
            urls = (read_url(config.run_dir),)
            user, password = service, read_password(config.run_dir, service)
        return cls(
            urls=urls,
            user=user,
            password=password,
            token=str(nats.token) if nats.token else None,
            credentials_path=nats.credentials_path,
            tls_ca_path=nats.tls_ca_path,
            partitions=log.partitions,
            input_max_age_s=log.input_retention,
            output_max_age_s=log.output_retention,
            max_bytes=log.max_bytes,
            replicas=nats.replicas or 1,
        )
