// @ts-check
/**
 * The contract of the socket, frame by frame:
 *
 * 1. who may not open one is told by HTTP in place of the upgrade, after a delay;
 * 2. joins, leaves and heartbeats are answered; what is no frame is ignored;
 * 3. protocol 1 has objects, protocol 2 arrays, and binary for what did not come as text;
 * 4. refused joins name a code, after a delay;
 * 5. broadcasts reach the others, oneself with `self`, and are acknowledged with `ack`;
 * 6. silent sockets are closed, and so are those without a channel.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { signToken } from '../tokens.mjs';
import { RawSocket } from './support/raw_socket.mjs';
import { ANON, SECRET, SERVICE, message, nowS, post, start, waitUntil } from './support/stage.mjs';

/** @type {import('./support/stage.mjs').Realtime} */
let realtime;
before(async () => (realtime = await start({ limits: { eventsPerSecond: null } })));
after(() => realtime?.stop());

const anon = (/** @type {Record<string, unknown>} */ claims) =>
  signToken({ role: 'anon', ...claims }, SECRET);

describe('opening', () => {
  /** The answer in place of the upgrade. @param {string} query @param {any} [headers] */
  async function refusal(query, headers = {}) {
    const { request } = await import('node:http');
    const upgrade = { connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-version': '13',
      'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==' };
    return new Promise((resolve, reject) => {
      const url = `${realtime.url}/socket/websocket${query}`;
      const asked = request(url, { headers: { ...upgrade, ...headers } }, async (response) => {
        let text = '';
        for await (const chunk of response) text += chunk;
        resolve([response.statusCode, text && JSON.parse(text)]);
      });
      asked.on('upgrade', () => reject(new Error('the socket was opened')));
      asked.on('error', reject).end();
    });
  }

  /** @type {[string, string, number, string][]} */
  const CASES = [
    ['no key', '?vsn=2.0.0', 401, 'API key is missing'],
    ['no JWT', '?apikey=x', 401, 'The token provided is not a valid JWT'],
    ['an expired token', `?apikey=${anon({ exp: nowS() - 9 })}`, 401, 'Token has expired'],
    ['no exp', `?apikey=${anon({ exp: undefined })}`, 401,
      'Fields `role` and `exp` are required in JWT'],
    ['a forged token', `?apikey=${signToken({ role: 'anon' }, 'x')}`, 401,
      'Failed to validate JWT signature'],
  ];
  for (const [name, query, status, error] of CASES) {
    test(`with ${name} is ${status}`, async () => {
      assert.deepEqual(await refusal(query), [status, { error }]);
    });
  }

  test('with an unknown protocol is 403 without a body', async () => {
    assert.deepEqual(await refusal(`?apikey=${ANON}&vsn=3.0.0`), [403, '']);
  });

  test('for an unknown tenant is 404', async () => {
    const headers = { host: 'other.example.com' };
    const expected = [404, { error: 'Tenant not found' }];
    assert.deepEqual(await refusal(`?apikey=${ANON}`, headers), expected);
  });

  test('takes the key of the header before that of the query', async () => {
    const socket = await RawSocket.open(realtime, { token: 'x', headers: { 'x-api-key': ANON } });
    assert.deepEqual(await socket.heartbeat(), { status: 'ok', response: {} });
    assert.equal((await refusal(`?apikey=${ANON}`, { 'x-api-key': 'x' }))[0], 401);
  });

  test('speaks protocol 1 unless asked for 2', async () => {
    const socket = await RawSocket.open(realtime, { version: 1, query: `?apikey=${ANON}` });
    assert.equal((await socket.join('realtime:room')).status, 'ok');
  });
});

describe('delays', () => {
  test('refusals of joins and handshakes are held back', async () => {
    const slow = await start({ joinErrorDelayMs: 900, handshakeErrorDelayMs: 900 });
    try {
      const startedAt = performance.now();
      await assert.rejects(RawSocket.open(slow, { token: 'x' }), /401/);
      const refusedAt = performance.now();
      assert.ok(refusedAt - startedAt >= 890, `${refusedAt - startedAt}`);
      const socket = await RawSocket.open(slow);
      const openedAt = performance.now();
      assert.ok(openedAt - refusedAt < 890, `${openedAt - refusedAt}`);
      assert.equal((await socket.join('realtime:')).status, 'error');
      assert.ok(performance.now() - openedAt >= 890);
    } finally {
      await slow.stop();
    }
  });
});

for (const version of /** @type {const} */ ([1, 2])) {
  describe(`frames of protocol ${version}`, () => {
    /** @type {RawSocket} */
    let socket;
    before(async () => (socket = await RawSocket.open(realtime, { version })));
    after(() => socket?.close());
    const joinRefOf = (/** @type {string} */ ref) => (version === 2 ? ref : undefined);

    test('heartbeat', async () => {
      const reply = await socket.replyTo(socket.push('phoenix', 'heartbeat', {}));
      assert.deepEqual(reply, {
        joinRef: version === 2 ? null : undefined, ref: '1', topic: 'phoenix', event: 'phx_reply',
        payload: { status: 'ok', response: {} }, form: 'text',
      });
    });

    test('join and leave', async () => {
      const ref = socket.push('realtime:room', 'phx_join', { config: {} });
      const { joinRef, payload } = await socket.replyTo(ref);
      assert.equal(joinRef, joinRefOf(ref));
      assert.deepEqual(payload, { status: 'ok', response: { postgres_changes: [] } });

      const left = socket.push('realtime:room', 'phx_leave', {}, { joinRef: ref });
      assert.equal((await socket.replyTo(left)).payload.status, 'ok');
      const close = await socket.nextEvent('phx_close');
      assert.deepEqual([close.joinRef, close.ref, close.payload], [joinRefOf(ref), ref, {}]);
      assert.ok(socket.frames.indexOf(close) > 0);
    });

    test('a second join closes the first after its answer', async () => {
      const first = await socket.join('realtime:twice');
      const second = await socket.join('realtime:twice');
      const close = await socket.next(
        ({ event, ref }) => event === 'phx_close' && ref === first.ref, 'the close of the first');
      const reply = await socket.replyTo(second.ref);
      assert.ok(socket.frames.indexOf(close) > socket.frames.indexOf(reply));
      assert.equal(close.joinRef, joinRefOf(first.ref));
      await post(realtime, { messages: [message('twice')] });
      await socket.heartbeat();
      const topics = socket.framesOf('broadcast').map(({ topic }) => topic);
      assert.deepEqual(topics.filter((topic) => topic === 'realtime:twice').length, 1);
    });

    test('what was not joined', async () => {
      const answer = async (/** @type {string} */ event, topic = 'realtime:nowhere') =>
        (await socket.replyTo(socket.push(topic, event, {}))).payload;
      const unmatched = { status: 'error', response: { reason: 'unmatched topic' } };
      assert.deepEqual(await answer('broadcast'), unmatched);
      assert.deepEqual(await answer('phx_join', 'room:without:prefix'), unmatched);
      assert.deepEqual(await answer('phx_leave'), { status: 'ok', response: {} });
    });

    test('a stale join_ref is accepted', async () => {
      await socket.join('realtime:stale', { broadcast: { ack: true } });
      const ref = socket.push('realtime:stale', 'broadcast', { event: 'x' }, { joinRef: '999' });
      assert.equal((await socket.replyTo(ref)).payload.status, 'ok');
    });

    test('what is no frame is ignored', async () => {
      const [object, list] =
        ['{"topic":"phoenix","event":"heartbeat"}', '[null,"1","phoenix","heartbeat",{}]'];
      const other = version === 2 ? object : list;
      const bytes = [Buffer.alloc(0), Buffer.from([3, 9, 9, 9, 9, 9, 9]), Buffer.from([7])];
      const texts = ['', 'hello', '7', 'null', '{}', '[]', other];
      for (const data of [...texts, ...bytes]) socket.sendRaw(data);
      const count = socket.frames.length;
      await socket.heartbeat();
      assert.equal(socket.frames.length, count + 1);
    });

    test('messages of each way in', async () => {
      await socket.join('realtime:ways');
      const sender = await RawSocket.open(realtime);
      await sender.join('realtime:ways');
      await post(realtime, { messages: [message('ways', { event: 'batch', id: 'i' })] });
      await post(realtime, { n: 1 }, { path: '/api/broadcast/ways/events/single' });
      sender.push('realtime:ways', 'broadcast', { type: 'broadcast', event: 'text', odd: 1 });
      sender.pushUser('realtime:ways', 'user', { n: 1 });
      sender.pushUser('realtime:ways', 'bytes', Buffer.from([0, 255]));
      await sender.heartbeat();
      await socket.heartbeat();
      const binary = version === 2 ? 'binary' : 'text';
      const n = { type: 'broadcast', payload: { n: 1 } };
      const frames = socket.framesOf('broadcast').filter(({ topic }) => topic === 'realtime:ways');
      assert.deepEqual(frames.map(({ form, payload }) => [form, payload]), [
        ['text', { ...n, event: 'batch', meta: { id: 'i' } }],
        [binary, { ...n, event: 'single' }],
        ['text', { type: 'broadcast', event: 'text', odd: 1 }],
        [binary, { ...n, event: 'user' }],
        ...(version === 2
          ? [['binary', { type: 'broadcast', event: 'bytes', payload: Buffer.from([0, 255]) }]]
          : []),
      ]);
      assert.deepEqual([...new Set(frames.map(({ ref }) => ref))], [null]);
    });
  });
}

describe('refused joins', () => {
  /** @type {[string, string, Record<string, unknown>, Record<string, unknown>, string][]} */
  const CASES = [
    ['no topic', 'realtime:', {}, {}, 'TopicNameRequired: You must provide a topic name'],
    ['no JWT', 'realtime:x', {}, { access_token: 'x' },
      'MalformedJWT: The token provided is not a valid JWT'],
    ['no role', 'realtime:x', {}, { access_token: signToken({}, SECRET) },
      'InvalidJWTToken: Fields `role` and `exp` are required in JWT'],
    ['a forged token', 'realtime:x', {}, { access_token: signToken({ role: 'anon' }, 'x') },
      'JwtSignatureError: Failed to validate JWT signature'],
    ['private without a database', 'realtime:x', { private: true }, {},
      'UnableToConnectToProject: Realtime was unable to connect to the project database'],
    ['replay of a public topic', 'realtime:x', { broadcast: { replay: { since: 1 } } }, {},
      'UnableToReplayMessages: Replay is not allowed for public channels'],
  ];
  for (const [name, topic, config, payload, reason] of CASES) {
    test(name, async () => {
      const socket = await RawSocket.open(realtime);
      const { status, response } = await socket.join(topic, config, payload);
      assert.deepEqual([status, response], ['error', { reason }]);
      assert.deepEqual(await socket.heartbeat(), { status: 'ok', response: {} });
      socket.close();
    });
  }

  test('an expired token', async () => {
    const socket = await RawSocket.open(realtime);
    const access_token = anon({ exp: nowS() - 3 });
    const { response } = await socket.join('realtime:x', {}, { access_token });
    assert.match(response.reason, /^InvalidJWTToken: Token has expired [34] seconds ago$/);
  });

  test('public channels where only private ones are allowed', async () => {
    const strict = await start({ privateOnly: true });
    try {
      const socket = await RawSocket.open(strict, { token: SERVICE });
      const { response } = await socket.join('realtime:x');
      assert.equal(response.reason, 'PrivateOnly: This project only allows private channels');
      assert.equal((await socket.join('realtime:x', { private: 'true' })).status, 'ok');
    } finally {
      await strict.stop();
    }
  });

  test('a suspended tenant', async () => {
    const socket = await RawSocket.open(realtime);
    realtime.suspend(true);
    const { response } = await socket.join('realtime:x');
    realtime.suspend(false);
    assert.equal(response.reason, 'RealtimeDisabledForTenant: Realtime disabled for this tenant');
  });

  test('tokens that stand for that of the handshake', async () => {
    const socket = await RawSocket.open(realtime);
    for (const access_token of ['sb_publishable_x', undefined, null]) {
      assert.equal((await socket.join('realtime:x', {}, { access_token })).status, 'ok');
    }
    assert.equal((await socket.join('realtime:x', {}, { user_token: 'x' })).status, 'error');
  });

  test('a config that cannot be read is as if it were not there', async () => {
    const socket = await RawSocket.open(realtime);
    const config = { broadcast: 'x', presence: 7, private: 'no', postgres_changes: {} };
    assert.equal((await socket.join('realtime:x', config)).status, 'ok');
  });
});

describe('broadcasts of a socket', () => {
  /** @param {Record<string, unknown>} [broadcast] */
  async function joined(broadcast) {
    const socket = await RawSocket.open(realtime);
    await socket.join('realtime:talk', { broadcast });
    return socket;
  }
  const say = { type: 'broadcast', event: 'say', payload: { a: 1 } };

  test('reach the others, and oneself only with self', async () => {
    const [quiet, loud] = [await joined(), await joined({ self: true })];
    quiet.push('realtime:talk', 'broadcast', say);
    loud.push('realtime:talk', 'broadcast', say);
    await loud.next(() => loud.framesOf('broadcast').length === 2, 'both messages');
    await quiet.heartbeat();
    assert.equal(quiet.framesOf('broadcast').length, 1);
    assert.deepEqual(quiet.framesOf('broadcast')[0].payload, say);
  });

  test('are acknowledged only with ack', async () => {
    const [mute, acked] = [await joined(), await joined({ ack: 'true' })];
    const ref = mute.push('realtime:talk', 'broadcast', say);
    await mute.heartbeat();
    assert.ok(!mute.framesOf('phx_reply').some((frame) => frame.ref === ref));
    const { payload } = await acked.replyTo(acked.push('realtime:talk', 'broadcast', say));
    assert.deepEqual(payload, { status: 'ok', response: {} });
    const user = await acked.replyTo(acked.pushUser('realtime:talk', 'say', { a: 1 }));
    assert.equal(user.payload.status, 'ok');
  });

  test('that are too large are refused, which only ack tells', async () => {
    const [mute, acked, other] = [await joined(), await joined({ ack: true }), await joined()];
    const large = { ...say, payload: { a: 'x'.repeat(3_000_500) } };
    mute.push('realtime:talk', 'broadcast', large);
    const { payload } = await acked.replyTo(acked.push('realtime:talk', 'broadcast', large));
    assert.deepEqual(payload, { status: 'error', response: 'payload_size_exceeded' });
    await mute.heartbeat();
    await other.heartbeat();
    assert.equal(mute.framesOf('phx_reply').length, 2);
    assert.equal(other.framesOf('broadcast').length, 0);
  });
});

describe('closing', () => {
  test('a frame over 5,000,000 bytes closes with 1009', async () => {
    const socket = await RawSocket.open(realtime);
    socket.sendRaw('x'.repeat(5_000_001));
    assert.equal(await socket.closed(), 1009);
  });

  test('a silent socket is closed with 1000, a beating one is not', async () => {
    const hasty = await start({ socketIdleMs: 400 });
    try {
      const [silent, beating] = [await RawSocket.open(hasty), await RawSocket.open(hasty)];
      const ended = waitUntil(
        () => beating.heartbeat().then(() => silent.closeCode), 'the silent one to be closed');
      assert.equal(await ended, 1000);
      assert.equal(beating.closeCode, null);
    } finally {
      await hasty.stop();
    }
  });

  test('a socket without a channel is dropped, one with a channel is not', async () => {
    const hasty = await start({ socketWithoutChannelMs: 1_000 });
    try {
      const [bare, joined] = [await RawSocket.open(hasty), await RawSocket.open(hasty)];
      await joined.join('realtime:room');
      assert.equal(await bare.closed(), 1006);
      assert.equal(joined.closeCode, null);
    } finally {
      await hasty.stop();
    }
  });

  test('a socket that ends leaves its channels', async () => {
    const socket = await RawSocket.open(realtime);
    const { channels } = realtime.stats();
    await socket.join('realtime:one');
    await socket.join('realtime:two');
    assert.equal(realtime.stats().channels, channels + 2);
    socket.close();
    await waitUntil(() => realtime.stats().channels === channels, 'its channels to be left');
  });
});
