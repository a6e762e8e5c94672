// Two people talk through matrix-js-sdk, which test_js_sdk.py starts as
// `node js_conversation.mjs BASE_URL ALICE BOB PASSWORD`. Each step that was seen by who had to see it is a line of
// JSON on standard output; a step that fails or takes too long ends the process with its name.

import { ClientEvent, createClient, EventType, MsgType, Preset, RoomEvent, SyncState } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel("error", false);

const [baseUrl, aliceName, bobName, password] = process.argv.slice(2);
const TIMEOUT_MS = 20_000;

function done(step, detail = {}) {
    console.log(JSON.stringify({ step, ...detail }));
}

async function until(what, condition) {
    const deadline = Date.now() + TIMEOUT_MS;
    for (;;) {
        const found = condition();
        if (found) return found;
        if (Date.now() > deadline) throw new Error(`never seen: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
}

async function person(name) {
    const registration = await createClient({ baseUrl }).registerRequest({
        username: name,
        password,
        auth: { type: "m.login.dummy" },
        inhibit_login: true,
    });
    const login = await createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: registration.user_id },
        password,
    });
    const client = createClient({
        baseUrl,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
        timelineSupport: true,
    });
    client.seen = [];
    client.on(RoomEvent.Timeline, (event) => client.seen.push(event));
    const prepared = new Promise((resolve, reject) => {
        client.on(ClientEvent.Sync, (state, _previous, data) => {
            if (state === SyncState.Prepared) resolve();
            if (state === SyncState.Error) reject(data.error);
        });
    });
    await client.startClient({ initialSyncLimit: 20 });
    await prepared;
    return client;
}

const saw = (client, type, check) => () => client.seen.find((event) => event.getType() === type && check(event));

const alice = await person(aliceName);
const bob = await person(bobName);
const both = [alice, bob];
done("started", { alice: alice.getUserId(), bob: bob.getUserId() });

const { room_id: roomId } = await alice.createRoom({
    preset: Preset.PrivateChat,
    name: "The first room",
    invite: [bob.getUserId()],
});
await until("the invite", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
done("invited", { roomId });

await bob.joinRoom(roomId);
for (const who of both) {
    await until("bob's join", () => who.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
}
done("joined", { name: bob.getRoom(roomId).name });

async function say(speaker, text) {
    const { event_id: eventId } = await speaker.sendEvent(roomId, EventType.RoomMessage, {
        msgtype: MsgType.Text,
        body: text,
    });
    for (const who of both) {
        // An own message is shown at once under a local id; the server's echo, told by the transaction id, replaces it.
        await until(text, saw(who, EventType.RoomMessage, (event) => event.getId() === eventId && event.status === null));
        const shown = who
            .getRoom(roomId)
            .getLiveTimeline()
            .getEvents()
            .filter((event) => event.getContent().body === text);
        if (shown.length !== 1) throw new Error(`${text} is shown ${shown.length} times to ${who.getUserId()}`);
    }
    return eventId;
}

await say(alice, "Hello, Bob");
const regretted = await say(bob, "My password is hunter2");
done("sent", { regretted });

await bob.redactEvent(roomId, regretted, undefined, { reason: "oh dear" });
for (const who of both) {
    await until("the redaction", () => who.getRoom(roomId).findEventById(regretted)?.isRedacted());
}
done("redacted");

await alice.sendStateEvent(roomId, EventType.RoomTopic, { topic: "Goodbye" }, "");
for (const who of both) {
    await until("the topic", () => {
        const event = who.getRoom(roomId).currentState.getStateEvents(EventType.RoomTopic, "");
        return event?.getContent().topic === "Goodbye";
    });
}
done("topic");

await bob.leave(roomId);
for (const who of both) {
    await until("bob's leaving", () => who.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "leave");
}
done("left", { membership: bob.getRoom(roomId).getMyMembership() });

let refused;
try {
    await bob.sendEvent(roomId, EventType.RoomMessage, { msgtype: MsgType.Text, body: "?" });
} catch (error) {
    refused = error.errcode;
}
done("refused", { errcode: refused });

for (const who of both) {
    who.stopClient();
    await who.logout();
}
done("end");
process.exit(0);
