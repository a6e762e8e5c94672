"""A real Synapse as a peer: in a virtual environment of its own (`make peers-setup`), on SQLite.

It is what we compare with (`benchmarks/`) and talk to (`tests/peers/`). Its settings are its defaults except
where a test could not run with them: limits off, cheap password hashes, no outbound federation.
"""

import base64
import os
import secrets
import subprocess
from pathlib import Path

from tests.support.homeserver import SHARED_SECRET, Homeserver
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / ".peers" / "synapse" / "bin" / "python"

_CONFIGURATION = """
server_name: {server_name}
public_baseurl: http://127.0.0.1:{port}/
pid_file: {folder}/homeserver.pid
listeners:
  - port: {port}
    type: http
    tls: false
    bind_addresses: [127.0.0.1]
    resources: [{{names: [client], compress: false}}]
database: {{name: sqlite3, args: {{database: {folder}/homeserver.db}}}}
log_config: {folder}/log.yaml
media_store_path: {folder}/media
signing_key_path: {folder}/signing.key
registration_shared_secret: "{secret}"
macaroon_secret_key: "a macaroon secret of the tests"
form_secret: "a form secret of the tests"
report_stats: false
trusted_key_servers: []
suppress_key_server_warning: true
federation_domain_whitelist: []
bcrypt_rounds: 4
enable_registration: true
enable_registration_without_verification: true
experimental_features: {{msc4222_enabled: true}}
{rate_limits}
"""

_UNLIMITED = "{per_second: 1000000, burst_count: 1000000}"
_RATE_LIMITS = f"""
rc_message: {_UNLIMITED}
rc_registration: {_UNLIMITED}
rc_registration_token_validity: {_UNLIMITED}
rc_admin_redaction: {_UNLIMITED}
rc_login: {{address: {_UNLIMITED}, account: {_UNLIMITED}, failed_attempts: {_UNLIMITED}}}
rc_joins: {{local: {_UNLIMITED}, remote: {_UNLIMITED}}}
rc_joins_per_room: {_UNLIMITED}
rc_invites: {{per_room: {_UNLIMITED}, per_user: {_UNLIMITED}, per_issuer: {_UNLIMITED}}}
rc_room_creation: {_UNLIMITED}
rc_presence: {{per_user: {_UNLIMITED}}}
"""

_LOGGING = """
version: 1
formatters: {plain: {format: "%(asctime)s %(levelname)s %(name)s %(message)s"}}
handlers: {console: {class: logging.StreamHandler, formatter: plain}}
root: {level: WARNING, handlers: [console]}
disable_existing_loggers: false
"""


def ensure_installed() -> None:
    """Install Synapse into its own virtual environment where that has not happened yet."""
    if not (PYTHON.parent.parent / ".installed").exists():
        subprocess.run(["make", "--no-print-directory", "peers-setup"], cwd=ROOT, check=True)


class SynapseServer(Homeserver):
    """One Synapse process with everything under `folder`."""

    name = "Synapse"

    def __init__(self, folder: Path, server_name: str = "synapse.test") -> None:
        super().__init__(folder)
        self.server_name = server_name
        self._port = free_port()
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "signing.key").write_text(f"ed25519 a_peer {seed}\n")
        (folder / "log.yaml").write_text(_LOGGING)
        text = _CONFIGURATION.format(
            server_name=server_name,
            port=self._port,
            folder=folder,
            secret=SHARED_SECRET,
            rate_limits=_RATE_LIMITS,
        )
        (folder / "homeserver.yaml").write_text(text)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        command = [str(PYTHON), "-m", "synapse.app.homeserver", "-c", str(self.folder / "homeserver.yaml")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return command, environment

    def _find_base_url(self) -> str | None:
        return f"http://127.0.0.1:{self._port}"
