"""`arbor`: arguments, and which module does what.

Only what a command needs is imported, so that `arbor run` stays light and `arbor --help` quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from servicekit.config import Config, ConfigError, load_config
from servicekit.config.load import ENV_CONFIG_FILE

DEFAULT_FILE = Path("arbor.yaml")
SERVICES = ("roomserver", "clientapi", "syncapi", "federation", "mediaapi", "appservice")


class CommandError(Exception):
    """A command cannot do what it was asked; the text says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failure, 2 for wrong arguments or
    configuration.
    """
    options = build_parser().parse_args(arguments)
    # Whatever is written, databases, sockets, logs, is its owner's alone.
    os.umask(0o077)
    try:
        return _dispatch(options)
    except (ConfigError, CommandError) as error:
        print(f"arbor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("configuration")
    group.add_argument(
        "--config", metavar="FILE", help="configuration file (ARBOR_CONFIG, or arbor.yaml if there is one)"
    )
    group.add_argument("--server-name", metavar="NAME", help="the name in user ids")
    group.add_argument("--data-dir", metavar="DIR", help="where everything is kept")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set any key, such as rooms.default_version=11; may be repeated",
    )
    parser = argparse.ArgumentParser(
        prog="arbor", description="A Matrix homeserver built around append-only logs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("run", parents=[common], help="run a whole homeserver in the foreground")
    for service in SERVICES:
        alone = commands.add_parser(service, parents=[common], help=f"run the service {service} alone")
        if service == "federation":
            alone.add_argument(
                "action",
                nargs="?",
                choices=("status", "joins", "reset"),
                help="instead: ask the one that runs",
            )
            alone.add_argument("server", nargs="?", help="status of this server only; reset: try it now")
    serve = commands.add_parser("serve", parents=[common])  # what `arbor run` starts
    serve.add_argument("process")
    serve.add_argument("services")

    init = commands.add_parser(
        "init", parents=[common], help="write a configuration file, make keys and folders"
    )
    init.add_argument("--force", action="store_true", help="replace a file that is there")

    user = commands.add_parser("user", help="accounts").add_subparsers(dest="action", required=True)
    create = user.add_parser("create", parents=[common], help="make an account (the server must run)")
    create.add_argument("name", help="localpart, or a full user id")
    create.add_argument("--password", help="else it is asked for, or read from standard input")
    create.add_argument("--admin", action="store_true", help="a server administrator")

    tokens = commands.add_parser("registration-token", help="who may register").add_subparsers(
        dest="action", required=True
    )
    make = tokens.add_parser("create", parents=[common], help="make a token (the server must run)")
    make.add_argument("token", nargs="?", help="the token itself, else a random one")
    make.add_argument("--uses", type=int, metavar="N", help="how many accounts may be made (any number)")
    make.add_argument(
        "--expires", metavar="WHEN", help="a duration such as 7d, or a time in ISO 8601 (never)"
    )
    tokens.add_parser("list", parents=[common], help="print all tokens")
    end = tokens.add_parser("delete", parents=[common], help="end a token")
    end.add_argument("token")

    rebuild = commands.add_parser("rebuild", parents=[common], help="make a reader's derived tables anew")
    rebuild.add_argument("service", choices=("syncapi", "federation", "appservice"))

    config = commands.add_parser("config", parents=[common], help="about the configuration")
    which = config.add_mutually_exclusive_group(required=True)
    which.add_argument("--reference", action="store_true", help="print every key with its default")
    which.add_argument("--check", action="store_true", help="check it, and print what is in force")

    log = commands.add_parser("log", help="look into the streams").add_subparsers(
        dest="action", required=True
    )
    show = log.add_parser("show", parents=[common], help="print entries of a stream as JSON lines")
    show.add_argument(
        "stream", nargs="?", default="OUTPUT", type=str.upper, choices=("INPUT", "OUTPUT", "LIVE")
    )
    show.add_argument(
        "--after", type=int, default=None, metavar="SEQUENCE", help="begin after it (the last entries)"
    )
    show.add_argument("--limit", type=int, default=20, help="how many (20)")
    show.add_argument("--about", metavar="ID", help="only those of a room or user")
    show.add_argument("--follow", action="store_true", help="go on as entries come")
    dead = log.add_parser("dead", parents=[common], help="print entries that could not be applied")
    dead.add_argument("--service", choices=SERVICES, help="only those of one service")
    dead.add_argument("--trace", action="store_true", help="with the traceback")
    replay = log.add_parser("replay", parents=[common], help="apply dead entries again (the server must run)")
    replay.add_argument("service", nargs="?", default="roomserver", choices=SERVICES)
    replay.add_argument(
        "what", nargs="*", metavar="ROOM_OR_ID", help="rooms of the roomserver, letters of others; none: all"
    )

    why = commands.add_parser("explain", parents=[common], help="say why an event stands as it does")
    why.add_argument("event_id", metavar="EVENT_ID")
    collect = commands.add_parser("collect", parents=[common], help="delete what no room needs any more")
    collect.add_argument("--dry-run", action="store_true", help="only count it")

    doctor = commands.add_parser("doctor", parents=[common], help="check everything and say what to do")
    doctor.add_argument("--deep", action="store_true", help="check the databases' pages too")

    key = commands.add_parser("key", help="signing keys").add_subparsers(dest="action", required=True)
    generate = key.add_parser("generate", parents=[common], help="make the signing keys that are missing")
    generate.add_argument(
        "--rotate", action="store_true", help="replace those there are, listing them as old"
    )
    rotate = key.add_parser("rotate", parents=[common], help="replace the signing keys, listing them as old")
    rotate.set_defaults(rotate=True)
    return parser


def configuration_file(options: argparse.Namespace) -> str | None:
    """Return the configuration file to use, None where there is none."""
    given: str | None = options.config or os.environ.get(ENV_CONFIG_FILE)
    if given is None and DEFAULT_FILE.is_file():
        return str(DEFAULT_FILE)
    return given


def overrides_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the keys that flags set: dotted key -> text.

    Raises:
        CommandError: a `--set` is not KEY=VALUE.
    """
    overrides = {}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise CommandError(f"--set {setting}: allowed: KEY=VALUE, such as rooms.default_version=11")
        overrides[key] = value
    if options.server_name is not None:
        overrides["server_name"] = options.server_name
    if options.data_dir is not None:
        overrides["data_dir"] = str(Path(options.data_dir).absolute())
    return overrides


def configuration(options: argparse.Namespace) -> Config:
    """Return the configuration that file, environment and flags make."""
    return load_config(configuration_file(options), None, overrides_of(options))


def configuration_arguments(options: argparse.Namespace) -> list[str]:
    """Return arguments from which another command loads the same configuration."""
    file = configuration_file(options)
    arguments = ["--config", file] if file is not None else []
    for key, value in overrides_of(options).items():
        arguments += ["--set", f"{key}={value}"]
    return arguments


def _dispatch(options: argparse.Namespace) -> int:
    command = options.command
    if command == "config" and options.reference:
        from servicekit.config.reference import reference

        print(reference(), end="")
        return 0
    if command == "init":
        from servicekit.cli.init import init

        return init(configuration_file(options), overrides_of(options), force=options.force)
    config = configuration(options)
    if command == "run":
        return _run(config, configuration_arguments(options))
    if command == "federation" and options.action is not None:
        from servicekit.cli.federation import federation

        return federation(config, options.action, options.server)
    if command == "serve" or command in SERVICES:
        from servicekit.cli.serve import serve

        names = options.services.split(",") if command == "serve" else [command]
        return serve(config, options.process if command == "serve" else command, names)
    if command == "config":
        from servicekit.cli.init import print_configuration

        return print_configuration(config)
    if command == "user":
        from servicekit.cli.user import create_user

        return create_user(config, options.name, options.password, admin=options.admin)
    if command == "registration-token":
        from servicekit.cli import registration_token

        if options.action == "list":
            return registration_token.list_tokens(config)
        if options.action == "delete":
            return registration_token.delete_token(config, options.token)
        return registration_token.create_token(config, options.token, options.uses, options.expires)
    if command == "rebuild":
        from servicekit.cli.serve import rebuild

        return rebuild(config, options.service)
    if command == "explain":
        from servicekit.cli.roomserver import explain

        return explain(config, options.event_id)
    if command == "collect":
        from servicekit.cli.roomserver import collect

        return collect(config, dry_run=options.dry_run)
    if command == "doctor":
        from servicekit.cli.doctor import doctor

        return doctor(config, deep=options.deep)
    if command == "key":
        from servicekit.cli.init import generate_keys

        return generate_keys(config, rotate=options.rotate)
    return _log(config, options)


def _log(config: Config, options: argparse.Namespace) -> int:
    if options.action == "dead":
        from servicekit.cli.dead import print_dead

        return print_dead(config, options.service, trace=options.trace)
    if options.action == "replay":
        from servicekit.cli.replay import replay

        return replay(config, options.service, options.what)
    from servicekit.cli.log import show

    return show(
        config,
        options.stream,
        after=options.after,
        limit=options.limit,
        about=options.about,
        follow=options.follow,
    )


def _run(config: Config, arguments: Sequence[str]) -> int:
    from servicekit.nats_server import NatsServerError
    from servicekit.supervisor import AlreadyRunning, run

    try:
        return run(config, arguments)
    except (AlreadyRunning, NatsServerError) as error:
        raise CommandError(str(error)) from error
