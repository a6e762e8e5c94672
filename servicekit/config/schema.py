"""Every configuration key: name, type, default and one line of documentation.

A struct is a section; `doc(...)` carries the line that `arbor config --reference` prints. Durations are held
in seconds, sizes in bytes, paths absolute. Keys of features that are still to come are here already, so that
a file written for a later version is not refused for its names.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from servicekit.config.database_urls import derive_database_url


class Secret(str):
    """A text that does not show itself in a repr, a log line or a traceback's locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


def doc(text: str) -> Meta:
    """Return the annotation that carries a key's line of documentation."""
    return Meta(description=text)


Duration = Annotated[float, Meta(extra={"kind": "duration"}, ge=0)]
Size = Annotated[int, Meta(extra={"kind": "size"}, ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
# A key that is not given follows from another one, data_dir mostly; see `load`.
DerivedPath = Annotated[Path, Meta(extra={"kind": "derived"})]
Url = Annotated[str, Meta(extra={"kind": "url"})]
# A room version is a word that looks like a number: YAML's 12 and "12" both mean it.
Version = Annotated[str, Meta(extra={"kind": "version"})]
Resource = Literal["client", "federation", "media", "admin", "metrics"]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the configuration."""


class ListenerTls(Section, frozen=True, kw_only=True):
    """Certificate of a listener."""

    certificate_path: Annotated[Path, doc("PEM file with the certificate and its chain")]
    private_key_path: Annotated[Path, doc("PEM file with the private key")]


class Listener(Section, frozen=True, kw_only=True):
    """A host and port and what is served there."""

    host: Annotated[str, doc("address to bind; 127.0.0.1 keeps it on this machine")] = "127.0.0.1"
    port: Annotated[Port, doc("TCP port; 0 takes a free one and writes it to run/listeners.json")] = 8008
    resources: Annotated[tuple[Resource, ...], doc("what is served here")] = (
        "client",
        "federation",
        "media",
        "admin",
    )
    tls: Annotated[ListenerTls | None, doc("serve HTTPS with this certificate")] = None
    x_forwarded: Annotated[
        bool,
        doc("trust X-Forwarded-For; only behind a proxy that sets it, else clients choose their address"),
    ] = False


class Nats(Section, frozen=True, kw_only=True):
    """The log: NATS JetStream 2.12 or later."""

    embedded: Annotated[bool, doc("start a nats-server of our own, bound to `host`")] = True
    host: Annotated[str, doc("embedded: address to bind")] = "127.0.0.1"
    port: Annotated[Port, doc("embedded: port; 0 takes a free one")] = 0
    store_dir: Annotated[DerivedPath, doc("embedded: where the streams are kept")] = Path("data/nats")
    url: Annotated[str | None, doc("external: nats:// or tls:// URL of the server")] = None
    urls: Annotated[tuple[str, ...], doc("external: URLs of a cluster")] = ()
    credentials_path: Annotated[Path | None, doc("external: NATS credentials file (.creds)")] = None
    user: Annotated[str | None, doc("external: user name")] = None
    password: Annotated[Secret | None, doc("external: password of `user`")] = None
    token: Annotated[Secret | None, doc("external: token, where no user or credentials are used")] = None
    tls_ca_path: Annotated[Path | None, doc("external: CA that signed the servers' certificates")] = None
    replicas: Annotated[Literal[1, 3, 5] | None, doc("external: copies of each stream (3 in a cluster)")] = (
        None
    )


class DatabaseConfig(Section, frozen=True, kw_only=True):
    """Where truth is stored. Each service has its own database."""

    url: Annotated[
        Annotated[str, Meta(extra={"kind": "derived"})],
        doc("sqlite:///file or postgresql://host/name; each service's own is derived from it"),
    ] = "sqlite:///./data/arbor.db"
    reader_threads: Annotated[int, Meta(ge=1, le=64), doc("reading connections of each service")] = 4


class Log(Section, frozen=True, kw_only=True):
    """The streams INPUT, OUTPUT and LIVE."""

    input_retention: Annotated[Duration, doc("how long INPUT is kept at least")] = 86400.0
    output_retention: Annotated[Duration, doc("how long OUTPUT is kept")] = 7 * 86400.0
    max_bytes: Annotated[
        Size, doc("size of a stream at which publishing fails, rather than lose entries")
    ] = 10 * 1024**3
    secure_erase: Annotated[bool, doc("delete redacted entries from the log at once")] = False
    partitions: Annotated[
        int, Meta(ge=1, le=1024), doc("partitions of the streams; fixed once they are created")
    ] = 16


class Logging(Section, frozen=True, kw_only=True):
    """What is written about what happens."""

    level: Annotated[Literal["debug", "info", "warning", "error"], doc("least level that is written")] = (
        "info"
    )
    path: Annotated[Path | None, doc("file to write to; stderr when null")] = None
    format: Annotated[Literal["console", "json"], doc("console for people, json for machines")] = "console"


class Tracing(Section, frozen=True, kw_only=True):
    """OpenTelemetry spans."""

    enabled: Annotated[bool, doc("make spans and send them")] = False
    endpoint: Annotated[Url, doc("OTLP over HTTP: where spans are sent")] = "http://127.0.0.1:4318/v1/traces"
    sample_ratio: Annotated[float, Meta(ge=0, le=1), doc("part of the requests that are traced")] = 1.0


class GrpcTls(Section, frozen=True, kw_only=True):
    """Certificates between services on different machines."""

    certificate_path: Annotated[Path, doc("PEM file with this service's certificate and its chain")]
    private_key_path: Annotated[Path, doc("PEM file with its private key")]
    ca_path: Annotated[Path, doc("PEM file of the CA that signs every service's certificate")]


class Grpc(Section, frozen=True, kw_only=True):
    """How services reach each other; unix sockets in the run directory unless said otherwise."""

    addresses: Annotated[
        dict[str, str], doc("by service: host:port or unix:/path, where others find it and it listens")
    ] = {}
    listen: Annotated[
        dict[str, str], doc("by service: where it listens, when that differs from its address")
    ] = {}
    tls: Annotated[GrpcTls | None, doc("needed for addresses that are neither unix sockets nor loopback")] = (
        None
    )
    secrets_dir: Annotated[DerivedPath, doc("each service's token; the same files on every machine")] = Path(
        "data/secrets"
    )
    deadline: Annotated[Duration, doc("time for a call that names no deadline")] = 15.0


class Http(Section, frozen=True, kw_only=True):
    """What every HTTP listener does."""

    max_body: Annotated[Size, doc("largest JSON body of a client")] = 2 * 1024**2
    max_federation_body: Annotated[Size, doc("largest JSON body of another server")] = 16 * 1024**2
    body_timeout: Annotated[Duration, doc("time to receive a whole body")] = 30.0
    max_connections: Annotated[int, Meta(ge=1), doc("open connections of a process")] = 20000


class Registration(Section, frozen=True, kw_only=True):
    """Who may make an account."""

    enabled: Annotated[bool, doc("let clients register")] = False
    require_verification: Annotated[
        bool, doc("open registration without any stage must be asked for by setting this to false")
    ] = True
    allow_guests: Annotated[bool, doc("let guests in")] = False
    shared_secret: Annotated[
        Secret | None, doc("key of POST /_synapse/admin/v1/register, the HMAC form that existing tools use")
    ] = None


class Passwords(Section, frozen=True, kw_only=True):
    """Password login."""

    enabled: Annotated[bool, doc("let users log in with a password")] = True
    hash_cost: Annotated[Literal["standard", "minimal"], doc("minimal: tests only")] = "standard"
    min_length: Annotated[int, Meta(ge=1, le=128), doc("shortest password that is taken")] = 8


class Sessions(Section, frozen=True, kw_only=True):
    """Access tokens."""

    access_token_lifetime: Annotated[
        Duration, doc("of tokens that can be refreshed, after which the client must refresh")
    ] = 3600.0
    refresh_token_lifetime: Annotated[Duration | None, doc("unused for so long, it ends; null: never")] = None
    nonrefreshable_lifetime: Annotated[
        Duration | None, doc("of tokens of clients that cannot refresh; null: never ends")
    ] = None


class RateLimit(Section, frozen=True, kw_only=True):
    """A token bucket."""

    per_second: Annotated[float, Meta(gt=0), doc("how fast the bucket fills")]
    burst: Annotated[int, Meta(ge=1), doc("how much it holds")]


class RateLimits(Section, frozen=True, kw_only=True):
    """How often a client may do what."""

    enabled: Annotated[bool, doc("limit at all; tests and benchmarks turn it off")] = True
    message: Annotated[RateLimit, doc("sending events, a user")] = RateLimit(per_second=10, burst=50)
    redaction: Annotated[RateLimit, doc("redacting, a user")] = RateLimit(per_second=10, burst=50)
    registration: Annotated[RateLimit, doc("registering, an address")] = RateLimit(per_second=0.17, burst=3)
    login: Annotated[RateLimit, doc("logging in, an address")] = RateLimit(per_second=0.5, burst=10)
    failed_login: Annotated[RateLimit, doc("wrong passwords, an account")] = RateLimit(
        per_second=0.17, burst=5
    )
    token_check: Annotated[RateLimit, doc("registration token checks, an address")] = RateLimit(
        per_second=0.1, burst=5
    )
    asking: Annotated[
        RateLimit,
        doc("asking for a registration's flows, nonces and free names, an address; proving oneself, a user"),
    ] = RateLimit(per_second=2, burst=30)
    settings: Annotated[
        RateLimit,
        doc("changing account data, tags, push rules, filters, pushers, devices and aliases, a user"),
    ] = RateLimit(per_second=10, burst=100)
    ephemeral: Annotated[RateLimit, doc("typing, receipts and presence, a user")] = RateLimit(
        per_second=10, burst=50
    )
    room_create: Annotated[RateLimit, doc("creating rooms, a user")] = RateLimit(per_second=0.5, burst=10)
    join: Annotated[RateLimit, doc("joining rooms of this server, a user")] = RateLimit(
        per_second=1, burst=20
    )
    join_remote: Annotated[RateLimit, doc("joining through other servers, a user")] = RateLimit(
        per_second=0.1, burst=10
    )
    invite: Annotated[RateLimit, doc("inviting, a user")] = RateLimit(per_second=0.5, burst=20)
    profile: Annotated[RateLimit, doc("changing the profile, a user")] = RateLimit(per_second=0.5, burst=10)
    search: Annotated[RateLimit, doc("searching events and users, a user")] = RateLimit(
        per_second=1, burst=10
    )
    media: Annotated[RateLimit, doc("uploading and fetching media, a user")] = RateLimit(
        per_second=5, burst=50
    )
    federation: Annotated[RateLimit, doc("requests of another server, a server")] = RateLimit(
        per_second=50, burst=200
    )


class PublicationRule(Section, frozen=True, kw_only=True):
    """Which rooms may stand in the room directory; the first rule that fits decides."""

    user_id: Annotated[str, doc("glob of who publishes")] = "*"
    room_id: Annotated[str, doc("glob of the room")] = "*"
    alias: Annotated[str, doc("glob of one of its aliases")] = "*"
    action: Annotated[Literal["allow", "deny"], doc("what then happens")]


class Rooms(Section, frozen=True, kw_only=True):
    """New rooms."""

    default_version: Annotated[Version, doc("room version of rooms made without naming one")] = "12"
    self_destructing_events: Annotated[bool, doc("events may name a time after which they are gone")] = False


class RoomDirectory(Section, frozen=True, kw_only=True):
    """The list of public rooms."""

    public_without_auth: Annotated[bool, doc("list public rooms without an access token")] = False
    public_over_federation: Annotated[bool, doc("list public rooms to other servers")] = False
    publication_rules: Annotated[tuple[PublicationRule, ...], doc("who may publish what")] = (
        PublicationRule(action="allow"),
    )


class Presence(Section, frozen=True, kw_only=True):
    """Who is online."""

    enabled: Annotated[bool, doc("tell and take presence")] = True


class Sync(Section, frozen=True, kw_only=True):
    """/sync."""

    response_cache_seconds: Annotated[
        Duration, doc("how long an answer to a slow first sync is kept for the retry")
    ] = 120.0
    window_events: Annotated[int, Meta(ge=0), doc("recent entries of OUTPUT held in memory")] = 50000
    max_timeout: Annotated[Duration, doc("longest wait of a long poll")] = 300.0


class Push(Section, frozen=True, kw_only=True):
    """Push notifications."""

    enabled: Annotated[bool, doc("send notifications to push gateways")] = True


class Federation(Section, frozen=True, kw_only=True):
    """Other servers."""

    enabled: Annotated[bool, doc("speak to other servers at all")] = True
    trusted_ca_paths: Annotated[
        tuple[Path, ...], doc("more CAs to trust in other servers' certificates")
    ] = ()
    verify_tls: Annotated[bool, doc("check certificates; false in closed tests only")] = True
    ip_denylist: Annotated[
        tuple[str, ...], doc("networks never connected to; default: private and link-local; [] allows all")
    ] = ("default",)
    key_servers: Annotated[tuple[str, ...], doc("notary servers asked for keys")] = ()


class OutboundHttp(Section, frozen=True, kw_only=True):
    """Everything outbound that is not federation: push, application services, CAS, previews."""

    trusted_ca_paths: Annotated[tuple[Path, ...], doc("more CAs to trust")] = ()
    verify_tls: Annotated[bool, doc("check certificates")] = True
    ip_denylist: Annotated[tuple[str, ...], doc("networks never connected to; [] allows all")] = ("default",)


class ApplicationServices(Section, frozen=True, kw_only=True):
    """Bridges and bots."""

    registration_files: Annotated[tuple[Path, ...], doc("their registration files")] = ()


class UrlPreviews(Section, frozen=True, kw_only=True):
    """Previews of links."""

    enabled: Annotated[bool, doc("fetch pages for previews")] = False
    ip_denylist: Annotated[tuple[str, ...], doc("networks never connected to; [] allows all")] = ("default",)


class Media(Section, frozen=True, kw_only=True):
    """Uploaded files."""

    store_path: Annotated[DerivedPath, doc("where they are kept")] = Path("data/media")
    max_upload: Annotated[Size, doc("largest upload")] = 50 * 1024**2
    url_previews: Annotated[UrlPreviews, doc("previews of links")] = UrlPreviews()


class UserDirectory(Section, frozen=True, kw_only=True):
    """Searching for people."""

    enabled: Annotated[bool, doc("let users search for users")] = True
    search_all_users: Annotated[bool, doc("find also those one shares no room with")] = False


class Identity(Section, frozen=True, kw_only=True):
    """E-mail addresses and telephone numbers."""

    three_pid_changes_enabled: Annotated[bool, doc("let users add and remove them")] = True


class Email(Section, frozen=True, kw_only=True, rename={"from_": "from"}):
    """Sending mail."""

    smtp_host: Annotated[str | None, doc("mail server; null: no mail is sent")] = None
    smtp_port: Annotated[Port, doc("its port")] = 25
    smtp_tls: Annotated[Literal["none", "starttls", "tls"], doc("how the connection is encrypted")] = (
        "starttls"
    )
    smtp_user: Annotated[str | None, doc("user name, where it wants one")] = None
    smtp_password: Annotated[Secret | None, doc("password of that user")] = None
    from_: Annotated[str | None, doc("sender address")] = None


class Captcha(Section, frozen=True, kw_only=True):
    """Captcha at registration."""

    required: Annotated[bool, doc("ask for one")] = False
    verify_url: Annotated[Url | None, doc("where answers are checked")] = None
    public_key: Annotated[str | None, doc("key that clients get")] = None
    private_key: Annotated[Secret | None, doc("key for the check")] = None


class Cas(Section, frozen=True, kw_only=True):
    """Login through CAS."""

    enabled: Annotated[bool, doc("offer it")] = False
    server_url: Annotated[Url | None, doc("URL of the CAS server")] = None


class ServerNotices(Section, frozen=True, kw_only=True):
    """Messages from the server to its users."""

    enabled: Annotated[bool, doc("let administrators send them")] = False
    localpart: Annotated[str, doc("user that sends them")] = "notices"
    display_name: Annotated[str, doc("name of that user")] = "Server notices"
    room_name: Annotated[str, doc("name of the room they come in")] = "Server notices"


class SupportContact(Section, frozen=True, kw_only=True):
    """How to reach somebody."""

    role: Annotated[str, doc("m.role.admin, m.role.security, or a namespaced identifier")] = "m.role.admin"
    matrix_id: Annotated[str | None, doc("a user id; this or email_address is needed")] = None
    email_address: Annotated[str | None, doc("an e-mail address")] = None


class Support(Section, frozen=True, kw_only=True):
    """Whom users ask for help, told at /.well-known/matrix/support."""

    contacts: Annotated[tuple[SupportContact, ...], doc("whom to write to")] = ()
    support_page: Annotated[Url | None, doc("page with help")] = None


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration."""

    server_name: Annotated[str, doc("the name in user ids; cannot change once used")] = ""
    server_names: Annotated[
        tuple[str, ...], doc("instead of server_name: several names, one deployment")
    ] = ()
    public_base_url: Annotated[Url | None, doc("where clients reach this server (first client listener)")] = (
        None
    )
    data_dir: Annotated[Path, doc("everything that is not placed elsewhere goes under here")] = Path("data")
    run_dir: Annotated[DerivedPath, doc("sockets and what belongs to this run")] = Path("data/run")
    signing_key_path: Annotated[DerivedPath, doc("key that signs events; made when missing")] = Path(
        "data/signing.key"
    )
    listeners: Annotated[
        tuple[Listener, ...],
        doc("a host and port serve any set of resources: client, federation, media, admin, metrics"),
    ] = (Listener(),)
    nats: Annotated[Nats, doc("the log")] = Nats()
    database: Annotated[DatabaseConfig, doc("databases")] = DatabaseConfig()
    databases: Annotated[dict[str, Url], doc("by service: its database, instead of the derived one")] = {}
    log: Annotated[Log, doc("the streams")] = Log()
    logging: Annotated[Logging, doc("log lines")] = Logging()
    tracing: Annotated[Tracing, doc("OpenTelemetry spans")] = Tracing()
    grpc: Annotated[Grpc, doc("between services")] = Grpc()
    http: Annotated[Http, doc("limits of HTTP")] = Http()
    registration: Annotated[Registration, doc("who may make an account")] = Registration()
    passwords: Annotated[Passwords, doc("password login")] = Passwords()
    sessions: Annotated[Sessions, doc("access tokens")] = Sessions()
    rate_limits: Annotated[RateLimits, doc("how often a client may do what")] = RateLimits()
    rooms: Annotated[Rooms, doc("new rooms")] = Rooms()
    room_directory: Annotated[RoomDirectory, doc("the list of public rooms")] = RoomDirectory()
    presence: Annotated[Presence, doc("who is online")] = Presence()
    sync: Annotated[Sync, doc("/sync")] = Sync()
    push: Annotated[Push, doc("push notifications")] = Push()
    federation: Annotated[Federation, doc("other servers")] = Federation()
    outbound_http: Annotated[OutboundHttp, doc("outbound that is not federation")] = OutboundHttp()
    application_services: Annotated[ApplicationServices, doc("bridges and bots")] = ApplicationServices()
    media: Annotated[Media, doc("uploaded files")] = Media()
    user_directory: Annotated[UserDirectory, doc("searching for people")] = UserDirectory()
    identity: Annotated[Identity, doc("e-mail addresses and telephone numbers")] = Identity()
    email: Annotated[Email, doc("sending mail")] = Email()
    captcha: Annotated[Captcha, doc("captcha at registration")] = Captcha()
    cas: Annotated[Cas, doc("login through CAS")] = Cas()
    server_notices: Annotated[ServerNotices, doc("messages from the server to its users")] = ServerNotices()
    support: Annotated[Support, doc("whom users ask for help")] = Support()

    def is_local(self, server_name: str) -> bool:
        """Say whether this deployment serves that server name."""
        return server_name in self.server_names

    def database_url(self, service: str) -> str:
        """Return the SQLAlchemy URL of a service's own database."""
        given = self.databases.get(service)
        return given if given is not None else derive_database_url(self.database.url, service)

    @property
    def secrets_dir(self) -> Path:
        """The directory with each service's gRPC token and other made secrets."""
        return self.grpc.secrets_dir

    def socket_path(self, name: str) -> Path:
        """Return the path of a unix socket in the run directory.

        A unix socket's path holds at most 107 bytes. Where the run directory is deeper than that, the sockets
        lie in a directory of their own below the system's temporary directory, named by the run directory,
        mode 0700.
        """
        path = self.run_dir / f"{name}.sock"
        if len(os.fsencode(path)) <= 100:
            return path
        digest = hashlib.sha256(os.fsencode(self.run_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"arbor-{os.getuid()}-{digest}" / f"{name}.sock"

    def grpc_address(self, service: str) -> str:
        """Return where a service is reached: `unix:/path` or `host:port`."""
        given = self.grpc.addresses.get(service)
        return given if given is not None else f"unix:{self.socket_path(service)}"

    def grpc_listen_address(self, service: str) -> str:
        """Return where a service listens."""
        given = self.grpc.listen.get(service)
        return given if given is not None else self.grpc_address(service)


def plain(value: Any) -> Any:
    """Return a configuration value as plain lists, dicts and texts, secrets hidden."""
    if isinstance(value, msgspec.Struct):
        return {f.encode_name: plain(getattr(value, f.name)) for f in msgspec.structs.fields(value)}
    if isinstance(value, Secret):
        return "<secret>"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
