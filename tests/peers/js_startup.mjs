// What a web client asks at start-up and in a day's use, through matrix-js-sdk; test_js_sdk.py starts it as
// `node js_startup.mjs BASE_URL ALICE BOB PASSWORD`. Each step is a line of JSON on standard output, with what the SDK made
// of the answers; the last one lists every request that was answered with an error.

import { ClientEvent, createClient, Direction, Filter, Preset, SyncState, Visibility } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel("silent", false);

const [baseUrl, aliceName, bobName, password] = process.argv.slice(2);
const TIMEOUT_MS = 20_000;
const requests = [];

async function fetchFn(resource, init) {
    const answer = await fetch(resource, init);
    const url = new URL(resource.toString());
    const request = { method: init?.method ?? "GET", path: url.pathname, status: answer.status };
    if (answer.status >= 400) request.errcode = (await answer.clone().json()).errcode ?? null;
    requests.push(request);
    return answer;
}

function done(step, detail = {}) {
    console.log(JSON.stringify({ step, ...detail }));
}

async function errcodeOf(promise) {
    try {
        await promise;
    } catch (error) {
        return error.errcode ?? error.message;
    }
    return null;
}

async function until(what, condition) {
    const deadline = Date.now() + TIMEOUT_MS;
    for (;;) {
        const found = await condition();
        if (found) return found;
        if (Date.now() > deadline) throw new Error(`never seen: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
}

async function start(credentials) {
    const client = createClient({ baseUrl, fetchFn, ...credentials, timelineSupport: true });
    const prepared = new Promise((resolve, reject) => {
        client.on(ClientEvent.Sync, (state, _previous, data) => {
            if (state === SyncState.Prepared) resolve();
            if (state === SyncState.Error) reject(data.error);
        });
    });
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, threadSupport: true });
    await prepared;
    return client;
}

async function logIn(name, options = {}) {
    const login = await createClient({ baseUrl, fetchFn }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: name },
        password,
        ...options,
    });
    return { userId: login.user_id, deviceId: login.device_id, accessToken: login.access_token, login };
}

// -- before anybody has logged in --

const nobody = createClient({ baseUrl, fetchFn });
const flows = await nobody.registerRequest({}).catch((error) => error.data.flows);
done("asked", {
    versions: (await nobody.getVersions()).versions.length,
    metadata: await errcodeOf(nobody.getAuthMetadata()),
    flows,
    login: (await nobody.loginFlows()).flows.map((flow) => flow.type),
    free: await nobody.isUsernameAvailable(aliceName),
});
for (const name of [aliceName, bobName]) {
    await nobody.registerRequest({ username: name, password, auth: { type: "m.login.dummy" }, inhibit_login: true });
}
done("registered", { free: await nobody.isUsernameAvailable(aliceName) });

// -- start-up --

const credentials = await logIn(aliceName, { refresh_token: true });
const refreshed = await createClient({ baseUrl, fetchFn }).refreshToken(credentials.login.refresh_token);
requests.length = 0;
const alice = await start({ ...credentials, accessToken: refreshed.access_token });
done("started", { requests: requests.map(({ method, path, status }) => `${method} ${path} ${status}`) });
const bob = await start(await logIn(bobName));
const server = alice.getDomain();

done("environment", {
    backup: await errcodeOf(
        alice.http.authedRequest("GET", "/room_keys/version", undefined, undefined, { prefix: "/_matrix/client/v3" }),
    ),
    capabilities: Object.keys(await alice.getCapabilities()).sort(),
    turn: await alice.turnServer(),
    transports: await errcodeOf(alice._unstable_getRTCTransports()),
    threads: await alice.doesServerSupportThread(),
    fields: await alice.doesServerSupportExtendedProfiles(),
    addresses: (await alice.getThreePids()).threepids,
    me: (await alice.whoami()).user_id,
});

// -- oneself --

await alice.setDisplayName("Alice");
await alice.setExtendedProfileProperty("m.tz", "Europe/Berlin");
await alice.setAccountData("org.example.note", { text: "n" });
await until("the account data", () => alice.getAccountData("org.example.note")?.getContent().text === "n");
await alice.addPushRule("global", "content", "tea", { actions: ["notify"], pattern: "tea" });
await alice.setPushRuleEnabled("global", "content", "tea", false);
await until("the push rule", () =>
    alice.pushRules?.global.content?.some((rule) => rule.rule_id === "tea" && !rule.enabled),
);
await alice.setPusher({
    app_display_name: "a",
    app_id: "a.test",
    data: { url: "https://push.test/_matrix/push/v1/notify" },
    device_display_name: "d",
    kind: "http",
    lang: "en",
    pushkey: "k",
});
await alice.setPresence({ presence: "unavailable", status_msg: "tea" });
const other = await logIn(aliceName);
const challenge = await alice.deleteDevice(other.deviceId).catch((error) => error.data);
await alice.deleteDevice(other.deviceId, {
    type: "m.login.password",
    identifier: { type: "m.id.user", user: alice.getUserId() },
    password,
    session: challenge.session,
});
done("oneself", {
    profile: await alice.getExtendedProfile(alice.getUserId()),
    pushers: (await alice.getPushers()).pushers.length,
    devices: (await alice.getDevices()).devices.length,
    flows: challenge.flows,
    openid: (await alice.getOpenIdToken()).matrix_server_name,
});

// -- rooms --

const { room_id: space } = await alice.createRoom({ preset: Preset.PublicChat, creation_content: { type: "m.space" } });
const { room_id: roomId } = await alice.createRoom({
    preset: Preset.PublicChat,
    visibility: Visibility.Public,
    name: `Tea ${aliceName}`,
    room_alias_name: aliceName,
});
await alice.sendStateEvent(space, "m.space.child", { via: [server] }, roomId);
const alias = `#${aliceName}:${server}`;
const listed = await bob.publicRooms({ filter: { generic_search_term: `tea ${aliceName}` }, limit: 5 });
await alice.createAlias(`#other-${aliceName}:${server}`, roomId);
await bob.joinRoom(alias);
await until("both in the room", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
await alice.setRoomTag(roomId, "m.favourite", { order: 0.5 });
await until("the tag", () => alice.getRoom(roomId)?.tags["m.favourite"]);
await alice.sendTyping(roomId, true, 5000);
await until("alice types", () => bob.getRoom(roomId)?.getMember(alice.getUserId())?.typing);
const root = (await alice.sendTextMessage(roomId, "Who wants tea?")).event_id;
await bob.sendEvent(roomId, root, "m.room.message", { msgtype: "m.text", body: "I do" });
await bob.sendEvent(roomId, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: root, key: "+" } });
const seen = await until("the message", () => bob.getRoom(roomId)?.findEventById(root));
await bob.sendReadReceipt(seen);
await bob.setRoomReadMarkers(roomId, root, seen);
await until("the receipt", () => alice.getRoom(roomId)?.getReadReceiptForUserId(bob.getUserId(), true)?.eventId === root);
const threads = await bob.createThreadListMessagesRequest(roomId, null, 5, Direction.Backward);
await bob.reportEvent(roomId, root, -10, "too hot");
await bob.reportRoom(roomId, "no sugar");
done("rooms", {
    listed: listed.chunk.map((room) => room.name),
    aliases: (await bob.getLocalAliases(roomId)).aliases.length,
    found: (await bob.searchUserDirectory({ term: aliceName })).results.map((user) => user.display_name),
    summary: (await bob.getRoomSummary(alias)).num_joined_members,
    hierarchy: (await bob.getRoomHierarchy(space)).rooms.length,
    members: Object.keys((await bob.getJoinedRoomMembers(roomId)).joined).length,
    threads: threads.chunk.length,
    reactions: (await bob.relations(roomId, root, "m.annotation", "m.reaction")).events.length,
    nearest: (await bob.timestampToEvent(roomId, 1, Direction.Forward)).event_id.startsWith("$"),
    shared: await bob._unstable_getSharedRooms(alice.getUserId()),
    roomId,
});

// -- power --

await bob.setIgnoredUsers([`@nobody:${server}`]);
const tooMuch = await errcodeOf(bob.kick(roomId, alice.getUserId()));
await alice.kick(roomId, bob.getUserId(), "out");
await until("bob is out", () => bob.getRoom(roomId)?.getMyMembership() === "leave");
await alice.ban(roomId, bob.getUserId());
const banned = await errcodeOf(bob.joinRoom(roomId));
await alice.unban(roomId, bob.getUserId());
await alice.sendStateEvent(roomId, "m.room.join_rules", { join_rule: "knock" }, "");
await bob.knockRoom(roomId);
await until("the knock", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "knock");
await alice.invite(roomId, bob.getUserId());
await bob.joinRoom(roomId);
const { replacement_room: successor } = await alice.upgradeRoom(roomId, "12", [bob.getUserId()]);
await until("the new room", () => alice.getRoom(successor)?.currentState.getStateEvents("m.room.create", ""));
done("power", {
    tooMuch,
    banned,
    predecessor: alice.getRoom(successor).findPredecessor()?.roomId,
    favourite: await until("the tag", () => Boolean(alice.getRoom(successor)?.tags["m.favourite"])),
    alias: (await bob.getRoomIdForAlias(alias)).room_id === successor,
    delayed: await errcodeOf(
        alice.http.authedRequest("PUT", `/rooms/${encodeURIComponent(successor)}/send/m.call.member/1`, {
            "org.matrix.msc4140.delay": 1000,
        }, {}),
    ),
});

// -- the end --

const filter = new Filter(alice.getUserId());
filter.setTimelineLimit(3);
await alice.getOrCreateFilter("mine", filter);
await bob.leave(roomId);
await until("bob has left", () => bob.getRoom(roomId)?.getMyMembership() === "leave");
await bob.forget(roomId);
const wrong = await bob
    .deactivateAccount({ type: "m.login.password", identifier: { type: "m.id.user", user: bobName }, password: "wrong" })
    .catch((error) => error.httpStatus);
await bob.deactivateAccount({ type: "m.login.password", identifier: { type: "m.id.user", user: bobName }, password });
bob.stopClient();
alice.stopClient();
await alice.logout(true);
done("end", { wrong, errors: requests.filter((request) => request.status >= 400) });
process.exit(0);
