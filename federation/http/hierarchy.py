"""A space and its children, as far as the asking server could peek or join (server-server API, "Spaces")."""

from typing import Any

from federation.http.authentication import Caller
from federation.http.endpoints import Endpoint
from federation.rooms import LatestState, Rooms
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from matrixlib.visibility import HISTORY_VISIBILITY_KEY, history_visibility_of
from servicekit.errors import not_found
from servicekit.http import Request, Response, json_response

MAX_CHILDREN = 50
_CREATE: StateKey = ("m.room.create", "")
_JOIN_RULES: StateKey = ("m.room.join_rules", "")
# Join rules under which anybody may at least ask to get in.
_OPEN_RULES = ("public", "knock", "knock_restricted")
# key of the summary -> (event type, key of its content)
_TEXTS = {
    "name": ("m.room.name", "name"),
    "topic": ("m.room.topic", "topic"),
    "avatar_url": ("m.room.avatar", "url"),
    "canonical_alias": ("m.room.canonical_alias", "alias"),
    "room_type": ("m.room.create", "type"),
    "encryption": ("m.room.encryption", "algorithm"),
}


class HierarchyRoutes:
    """See the module."""

    ENDPOINTS = (
        Endpoint(
            "GET",
            "/_matrix/federation/v1/hierarchy/{room_id}",
            "hierarchy",
            aliases=("/_matrix/federation/unstable/org.matrix.msc2946/hierarchy/{room_id}",),
        ),
    )

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def hierarchy(self, request: Request, caller: Caller) -> Response:
        """GET /hierarchy/{roomId}."""
        room_id = request.path_params["room_id"]
        suggested_only = request.query_bool("suggested_only")
        state = await self._state(room_id)
        if state is None or not await self._is_open_to(room_id, state, caller.origin):
            raise not_found("There is no such space, or it is not open to you")
        children = _children_of(state, suggested_only)
        room = await self._summary(room_id, state)
        room["children_state"] = [_child_event(event) for event in children]
        found: list[dict[str, Any]] = []
        inaccessible: list[str] = []
        for event in children:
            child_id = event.state_key or ""
            child = await self._state(child_id)
            if child is None:
                continue  # nothing can be said about a room that we are not in
            if await self._is_open_to(child_id, child, caller.origin):
                found.append(await self._summary(child_id, child))
            else:
                inaccessible.append(child_id)
        return json_response({"room": room, "children": found, "inaccessible_children": inaccessible})

    async def _state(self, room_id: str) -> LatestState | None:
        latest = await self._rooms.latest(room_id, all_state=True)
        # Of a room whose members are not all here another server can say more.
        return latest if latest is not None and latest.participating and not latest.partial else None

    async def _is_open_to(self, room_id: str, latest: LatestState, server_name: str) -> bool:
        """Whether anybody of a server could peek into or join a room."""
        view = await self._rooms.view(room_id)
        if view is None or not view.allows(server_name):
            return False
        rules = _content(latest, _JOIN_RULES)
        if rules.get("join_rule") in _OPEN_RULES:
            return True
        if history_visibility_of(latest.state.get(HISTORY_VISIBILITY_KEY)) == "world_readable":
            return True
        if any(
            kind == "m.room.member"
            and server_name_of(user_id) == server_name
            and event.membership in ("join", "invite")
            for (kind, user_id), event in latest.state.items()
        ):
            return True
        allow = rules.get("allow") if rules.get("join_rule") == "restricted" else None
        for condition in allow if isinstance(allow, list) else ():
            other = condition.get("room_id") if isinstance(condition, dict) else None
            if isinstance(other, str) and await self._rooms.is_server_in_room(other, server_name):
                return True
        return False

    async def _summary(self, room_id: str, latest: LatestState) -> dict[str, Any]:
        rules = _content(latest, _JOIN_RULES)
        join_rule = rules.get("join_rule")
        visibility = history_visibility_of(latest.state.get(HISTORY_VISIBILITY_KEY))
        guests = _content(latest, ("m.room.guest_access", "")).get("guest_access")
        summary: dict[str, Any] = {
            "room_id": room_id,
            "room_version": latest.version.identifier,
            "num_joined_members": sum(
                kind == "m.room.member" and event.membership == "join"
                for (kind, _), event in latest.state.items()
            ),
            "join_rule": join_rule if isinstance(join_rule, str) else "invite",
            "world_readable": visibility == "world_readable",
            "guest_can_join": guests == "can_join",
        }
        for key, (kind, field) in _TEXTS.items():
            value = _content(latest, (kind, "")).get(field)
            if isinstance(value, str):
                summary[key] = value
        allow = rules.get("allow")
        if summary["join_rule"] in ("restricted", "knock_restricted") and isinstance(allow, list):
            ids = [item.get("room_id") for item in allow if isinstance(item, dict)]
            summary["allowed_room_ids"] = [item for item in ids if isinstance(item, str)]
        return summary


def _content(latest: LatestState, key: StateKey) -> dict[str, Any]:
    event = latest.state.get(key)
    return event.content if event is not None else {}


def _children_of(latest: LatestState, suggested_only: bool) -> list[Event]:
    """The child events of a space, in its order; none for a room that is no space."""
    if _content(latest, _CREATE).get("type") != "m.space":
        return []
    children = [
        event
        for (kind, _), event in latest.state.items()
        if kind == "m.space.child"
        and isinstance(event.content.get("via"), list)
        and (not suggested_only or event.content.get("suggested") is True)
    ]
    return sorted(children, key=_order)[:MAX_CHILDREN]


def _order(event: Event) -> tuple[bool, str, int, str]:
    order = event.content.get("order")
    if not isinstance(order, str) or len(order) > 50 or not all(" " <= char <= "~" for char in order):
        return (True, "", event.origin_server_ts, event.state_key or "")
    return (False, order, event.origin_server_ts, event.state_key or "")


def _child_event(event: Event) -> dict[str, Any]:
    return {
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "content": event.content,
        "origin_server_ts": event.origin_server_ts,
    }
