"""Row 18 over the running system: every endpoint that names a room, asked by those who may not look into it.

The endpoints come from the services themselves. Whatever an outsider, an invited user or one who has left
gets, nothing of what was said and set while they were not there is in it.
"""

from collections.abc import Callable
from pathlib import Path

import aiohttp
import orjson

from tests.support.client_routes import ask, served_endpoints
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import segment

SECRET = "what only members may know"

# What everybody may know, or what is the asker's own, whatever room it names; of a hierarchy who is invited may
# see what the invite shows too.
OWN_OR_OPEN = {"directory", "account_data", "tags", "room_summary"}
SHOWN_TO_INVITED = {"hierarchy"}


async def test_nothing_of_a_room_reaches_those_outside(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str], tmp_path: Path
) -> None:
    alice = await homeserver.register(session, unique("alice"))
    outsider = await homeserver.register(session, unique("outsider"))
    invited = await homeserver.register(session, unique("invited"))
    gone = await homeserver.register(session, unique("gone"))
    room_id = await alice.create_room(invite=[gone.user_id], room_alias_name=unique("room"))
    await gone.join(room_id)
    before = await alice.send(room_id, "while all were there")
    await gone.leave(room_id)
    await alice.invite(room_id, invited.user_id)
    event_id = await alice.send(room_id, SECRET)
    await alice.set_state(room_id, "org.example.secret", {"text": SECRET})
    await alice.set_state(room_id, "m.room.pinned_events", {"pinned": [event_id], "text": SECRET})

    endpoints = [
        endpoint
        for endpoint in served_endpoints(tmp_path)
        if endpoint.method == "GET"
        and {"room_id", "room_id_or_alias"} & set(endpoint.parameters)
        and "admin" not in endpoint.pattern
    ]
    assert len(endpoints) >= 20
    query = "?dir=b&ts=9000000000000&format=event"
    for person, past in ((outsider, False), (invited, False), (gone, True)):
        for endpoint in endpoints:
            for named in (event_id, before) if "event_id" in endpoint.parameters else (event_id,):
                path = endpoint.path(
                    {
                        "room_id": room_id,
                        "room_id_or_alias": room_id,
                        "event_id": named,
                        "user_id": person.user_id,
                        "event_type": "org.example.secret",
                        "state_key": "",
                    }
                )
                answer = await ask(
                    session, homeserver.base_url, "GET", path + query, token=person.access_token
                )
                shown = f"{endpoint} for {person.user_id}: {answer.status}"
                assert SECRET.encode() not in orjson.dumps(answer.json), shown
                assert answer.status < 500, shown
                shown_to = OWN_OR_OPEN | SHOWN_TO_INVITED if person is invited else OWN_OR_OPEN
                if not set(endpoint.pattern.split("/")) & shown_to and not past:
                    assert answer.status in (403, 404), shown
        found = await person.post(
            "/search", {"search_categories": {"room_events": {"search_term": "members may know"}}}
        )
        synced = await person.sync(filter='{"room":{"include_leave":true}}')
        notified = await person.get("/notifications")
        for answer_json in (found["search_categories"]["room_events"]["results"], synced, notified):
            assert SECRET.encode() not in orjson.dumps(answer_json)
        # Nor can they find out by writing: the event is not there for them.
        for path in (
            f"/rooms/{segment(room_id)}/redact/{segment(event_id)}/1",
            f"/rooms/{segment(room_id)}/redact/%24unknown/2",
        ):
            refused = await ask(
                session,
                homeserver.base_url,
                "PUT",
                f"/_matrix/client/v3{path}",
                token=person.access_token,
                body={},
            )
            assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
