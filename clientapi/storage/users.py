"""Users, devices and profiles."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from clientapi.storage.tables import devices, profile_fields, profile_updates, users
from clientapi.storage.upsert import insert_or_ignore, upsert
from servicekit.database.raw import Sql

_EXISTING = Sql(f"SELECT user_id FROM {users.name} WHERE user_id IN ?")  # noqa: S608
_PROFILES = Sql(f"SELECT user_id, name, value_json FROM {profile_fields.name} WHERE user_id IN ?")  # noqa: S608


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`, the password hash left out unless asked for."""

    user_id: str
    password_hash: str | None
    admin: bool
    guest: bool
    deactivated: bool
    suspended: bool
    locked: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A row of `devices`."""

    user_id: str
    device_id: str
    display_name: str | None
    last_seen_ms: int | None
    last_seen_ip: str | None


def load_user(conn: Connection, user_id: str) -> User | None:
    """Return an account, or None."""
    row = conn.execute(
        select(
            users.c.user_id,
            users.c.password_hash,
            users.c.admin,
            users.c.guest,
            users.c.deactivated,
            users.c.suspended,
            users.c.locked,
        ).where(users.c.user_id == user_id)
    ).one_or_none()
    return None if row is None else User(*row)


def user_exists(conn: Connection, user_id: str) -> bool:
    """Say whether the id is taken, by a deactivated account too."""
    return conn.execute(select(users.c.user_id).where(users.c.user_id == user_id)).first() is not None


def store_user(
    conn: Connection,
    user_id: str,
    password_hash: str | None,
    now_ms: int,
    *,
    admin: bool = False,
    guest: bool = False,
) -> bool:
    """Make an account; False if the id is taken."""
    try:
        with conn.begin_nested():
            conn.execute(
                insert(users).values(
                    user_id=user_id,
                    password_hash=password_hash,
                    created_ms=now_ms,
                    admin=admin,
                    guest=guest,
                    deactivated=False,
                    suspended=False,
                    locked=False,
                )
            )
    except IntegrityError:
        return False
    return True


def load_guests_among(conn: Connection, user_ids: list[str]) -> list[str]:
    """Return those of these users that are guests."""
    return list(
        conn.execute(
            select(users.c.user_id)
            .where(users.c.user_id.in_(user_ids), users.c.guest.is_(True))
            .order_by(users.c.user_id)
        ).scalars()
    )


def store_former_guest(conn: Connection, user_id: str, password_hash: str) -> bool:
    """Make a full account of a guest; False if it is none (any more)."""
    result = conn.execute(
        update(users)
        .where(users.c.user_id == user_id, users.c.guest.is_(True), users.c.deactivated.is_(False))
        .values(guest=False, password_hash=password_hash)
    )
    return result.rowcount == 1


def store_password(conn: Connection, user_id: str, password_hash: str | None) -> None:
    """Replace the password of an account."""
    conn.execute(update(users).where(users.c.user_id == user_id).values(password_hash=password_hash))


def store_deactivated(conn: Connection, user_id: str) -> None:
    """End an account: no password, no profile; the id stays taken."""
    conn.execute(update(users).where(users.c.user_id == user_id).values(password_hash=None, deactivated=True))
    conn.execute(delete(profile_fields).where(profile_fields.c.user_id == user_id))


def store_erased(conn: Connection, user_id: str, now_ms: int) -> bool:
    """Note that an account's content is erased; False if it was before."""
    result = conn.execute(
        update(users).where(users.c.user_id == user_id, users.c.erased_ms.is_(None)).values(erased_ms=now_ms)
    )
    return result.rowcount == 1


def load_erased(conn: Connection, user_ids: list[str] | None = None) -> dict[str, int]:
    """Return which of these users (None: of all) had their content erased, and when."""
    query = select(users.c.user_id, users.c.erased_ms).where(users.c.erased_ms.is_not(None))
    if user_ids is not None:
        query = query.where(users.c.user_id.in_(user_ids))
    return {row.user_id: row.erased_ms for row in conn.execute(query.order_by(users.c.user_id))}


_DEVICE_COLUMNS = (
    devices.c.user_id,
    devices.c.device_id,
    devices.c.display_name,
    devices.c.last_seen_ms,
    devices.c.last_seen_ip,
)


def load_devices(conn: Connection, user_ids: list[str]) -> list[Device]:
    """Return all devices of users, in order of user and device id."""
    rows = conn.execute(
        select(*_DEVICE_COLUMNS)
        .where(devices.c.user_id.in_(user_ids))
        .order_by(devices.c.user_id, devices.c.device_id)
    )
    return [Device(*row) for row in rows]


def load_longest_unseen(conn: Connection, user_id: str, keep: int) -> list[str]:
    """Return the devices of a user beyond the `keep` that were seen, or made, last."""
    seen = func.coalesce(devices.c.last_seen_ms, devices.c.created_ms)
    return list(
        conn.execute(
            select(devices.c.device_id)
            .where(devices.c.user_id == user_id)
            .order_by(seen.desc(), devices.c.created_ms.desc(), devices.c.device_id)
            .offset(keep)
        ).scalars()
    )


def count_devices(conn: Connection, user_ids: list[str]) -> int:
    """Return how many devices users have together."""
    return conn.execute(
        select(func.count()).select_from(devices).where(devices.c.user_id.in_(user_ids))
    ).scalar_one()


def iterate_devices(conn: Connection) -> list[Device]:
    """Return everybody's devices, in order of user and device id."""
    return [
        Device(*row)
        for row in conn.execute(select(*_DEVICE_COLUMNS).order_by(devices.c.user_id, devices.c.device_id))
    ]


def load_device(conn: Connection, user_id: str, device_id: str) -> Device | None:
    """Return a device, or None."""
    row = conn.execute(
        select(*_DEVICE_COLUMNS).where(devices.c.user_id == user_id, devices.c.device_id == device_id)
    ).one_or_none()
    return None if row is None else Device(*row)


def store_device(
    conn: Connection, user_id: str, device_id: str, display_name: str | None, now_ms: int
) -> bool:
    """Make a device; an existing one keeps its name. True if it is new."""
    return insert_or_ignore(
        conn,
        devices,
        {"user_id": user_id, "device_id": device_id, "display_name": display_name, "created_ms": now_ms},
    )


def rename_device(conn: Connection, user_id: str, device_id: str, display_name: str | None) -> bool:
    """Give a device a name; False if there is no such device."""
    result = conn.execute(
        update(devices)
        .where(devices.c.user_id == user_id, devices.c.device_id == device_id)
        .values(display_name=display_name)
    )
    return result.rowcount == 1


def delete_devices(conn: Connection, user_id: str, device_ids: list[str] | None) -> list[str]:
    """Delete devices (None: all) and their tokens; return the ids of those that were there."""
    condition = devices.c.user_id == user_id
    if device_ids is not None:
        condition = condition & devices.c.device_id.in_(device_ids)
    found = list(conn.execute(select(devices.c.device_id).where(condition)).scalars())
    # Tokens go with the device: ON DELETE CASCADE.
    conn.execute(delete(devices).where(condition))
    return found


def store_last_seen(conn: Connection, seen: list[tuple[str, str, int, str]]) -> None:
    """Note when devices were last seen: (user, device, time, address) each."""
    for user_id, device_id, seen_ms, address in seen:
        conn.execute(
            update(devices)
            .where(devices.c.user_id == user_id, devices.c.device_id == device_id)
            .values(last_seen_ms=seen_ms, last_seen_ip=address)
        )


def load_profile(conn: Connection, user_id: str) -> dict[str, bytes] | None:
    """Return the profile of a user as name -> JSON value; None if there is no such (active) user."""
    deactivated = conn.execute(select(users.c.deactivated).where(users.c.user_id == user_id)).scalar()
    if deactivated is None or deactivated:
        return None
    return load_profiles(conn, [user_id]).get(user_id, {})


def load_profiles(conn: Connection, user_ids: list[str]) -> dict[str, dict[str, bytes]]:
    """Return the profiles of the users that exist: user -> name -> JSON value."""
    found: dict[str, dict[str, bytes]] = {user_id: {} for (user_id,) in _EXISTING.rows(conn, list(user_ids))}
    for user_id, name, value_json in _PROFILES.rows(conn, list(user_ids)):
        found[user_id][name] = bytes(value_json)
    return found


def store_profile_field(conn: Connection, user_id: str, name: str, value_json: bytes) -> None:
    """Set one field of a profile."""
    upsert(
        conn,
        profile_fields,
        {"user_id": user_id, "name": name},
        {"value_json": value_json},
    )


def delete_profile_field(conn: Connection, user_id: str, name: str) -> None:
    """Remove one field of a profile."""
    conn.execute(
        delete(profile_fields).where(profile_fields.c.user_id == user_id, profile_fields.c.name == name)
    )


def store_profile_update(conn: Connection, user_id: str, now_ms: int, *, leave_rooms: bool = False) -> None:
    """Ask that the user's member events follow the profile (or that the user leaves every room)."""
    row = conn.execute(
        select(profile_updates.c.version, profile_updates.c.leave_rooms).where(
            profile_updates.c.user_id == user_id
        )
    ).one_or_none()
    upsert(
        conn,
        profile_updates,
        {"user_id": user_id},
        {
            "version": 1 if row is None else row.version + 1,
            "not_before_ms": now_ms,
            "attempts": 0,
            "leave_rooms": leave_rooms or (row is not None and row.leave_rooms),
        },
    )


@dataclass(frozen=True, slots=True)
class ProfileUpdate:
    """A claimed row of `profile_updates`."""

    user_id: str
    version: int
    attempts: int
    leave_rooms: bool


def claim_profile_update(conn: Connection, now_ms: int, lease_ms: int) -> ProfileUpdate | None:
    """Take the oldest piece of work that is due, for `lease_ms`; None if there is none."""
    row = conn.execute(
        select(profile_updates)
        .where(profile_updates.c.not_before_ms <= now_ms)
        .order_by(profile_updates.c.not_before_ms)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    claimed = conn.execute(
        update(profile_updates)
        .where(profile_updates.c.user_id == row.user_id, profile_updates.c.not_before_ms == row.not_before_ms)
        .values(not_before_ms=now_ms + lease_ms, attempts=row.attempts + 1)
    )
    if claimed.rowcount != 1:
        return None
    return ProfileUpdate(row.user_id, row.version, row.attempts + 1, row.leave_rooms)


def finish_profile_update(conn: Connection, work: ProfileUpdate) -> None:
    """Delete what is done, unless it was asked for again meanwhile."""
    conn.execute(
        delete(profile_updates).where(
            profile_updates.c.user_id == work.user_id, profile_updates.c.version == work.version
        )
    )


def postpone_profile_update(conn: Connection, work: ProfileUpdate, not_before_ms: int) -> None:
    """Try again later."""
    conn.execute(
        update(profile_updates)
        .where(profile_updates.c.user_id == work.user_id, profile_updates.c.version == work.version)
        .values(not_before_ms=not_before_ms)
    )
