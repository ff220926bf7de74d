// @ts-check
/**
 * The contract of the HTTP routes:
 *
 * 1. 202 says nothing of delivery; a refusal has the status and the body of the documented table;
 * 2. a batch is refused as a whole, with one entry for each message;
 * 3. the checks come in their order: body, address, Accept, tenant, token, suspension, fields;
 * 4. what is accepted arrives, in the order of the list, on the topic without `realtime:`;
 * 5. public and private topics of one name are two;
 * 6. all of it works behind the gateway's prefix too.
 */
import assert from 'node:assert/strict';
import { request } from 'node:http';
import { after, before, beforeEach, describe, test } from 'node:test';
import { RawSocket } from './support/raw_socket.mjs';
import { ANON, SERVICE, message, post, start } from './support/stage.mjs';

/** @type {import('./support/stage.mjs').Realtime} */
let realtime;
before(async () => (realtime = await start({ limits: { eventsPerSecond: null } })));
after(() => realtime?.stop());

/**
 * @param {string} topic with its `realtime:`
 * @param {{ version?: 1 | 2, token?: string, config?: Record<string, unknown> }} [options]
 */
async function listen(topic, { version, token, config } = {}) {
  const socket = await RawSocket.open(realtime, { version, token });
  assert.equal((await socket.join(topic, config)).status, 'ok');
  return socket;
}

/** What arrived, once everything that was sent has. @param {RawSocket} socket */
async function received(socket) {
  await socket.heartbeat();
  return socket.framesOf('broadcast').map(({ payload }) => payload);
}

describe('a batch', () => {
  const complaints = (/** @type {unknown[]} */ ...messages) => ({ errors: { messages } });
  const BLANK = ["can't be blank"];
  const INVALID = ['is invalid'];
  const good = message('room');

  /** @type {[string, unknown, number, unknown][]} */
  const CASES = [
    ['one good message', { messages: [good] }, 202, ''],
    ['an object of messages', { messages: { 1: good, 0: good } }, 202, ''],
    ['unknown fields', { messages: [{ ...good, colour: 'red' }], more: 1 }, 202, ''],
    ['private as text', { messages: [{ ...good, private: 'false' }] }, 202, ''],
    ['private of null', { messages: [{ ...good, private: null }] }, 202, ''],
    ['no event and no payload', { messages: [good, { topic: 'x' }, good] }, 422,
      complaints({}, { event: BLANK, payload: BLANK }, {})],
    ['a blank topic', { messages: [{ ...good, topic: ' ' }] }, 422, complaints({ topic: BLANK })],
    ['an empty event', { messages: [{ ...good, event: '' }] }, 422, complaints({ event: BLANK })],
    ['a topic that is a number', { messages: [{ ...good, topic: 7 }] }, 422,
      complaints({ topic: INVALID })],
    ['a list as payload', { messages: [{ ...good, payload: [1] }] }, 422,
      complaints({ payload: INVALID })],
    ['text as payload', { messages: [{ ...good, payload: 'x' }] }, 422,
      complaints({ payload: INVALID })],
    ['null as payload', { messages: [{ ...good, payload: null }] }, 422,
      complaints({ payload: BLANK })],
    ['private that is none', { messages: [{ ...good, private: 'yes' }] }, 422,
      complaints({ private: INVALID })],
    ['an id that is a number', { messages: [{ ...good, id: 7 }] }, 422,
      complaints({ id: INVALID })],
    ['no messages', {}, 422, complaints(...BLANK)],
    ['an empty list', { messages: [] }, 422, complaints(...BLANK)],
    ['a list at the top', [good], 422, complaints(...BLANK)],
    ['a number at the top', '7', 422, complaints(...BLANK)],
    ['nothing', '', 422, complaints(...BLANK)],
    ['messages of null', { messages: null }, 422, complaints(...INVALID)],
    ['messages as text', { messages: 'x' }, 422, complaints(...INVALID)],
    ['a list with a number', { messages: [good, 1] }, 422, complaints(...INVALID)],
  ];
  for (const [name, body, status, answer] of CASES) {
    test(`${name} is ${status}`, async () => {
      const response = await post(realtime, body);
      assert.deepEqual([response.status, response.body], [status, answer]);
    });
  }

  test('what is not JSON is 400', async () => {
    const { status, body, type } = await post(realtime, '{"messages":');
    assert.deepEqual([status, body], [400, 'Bad Request']);
    assert.match(type, /^text\/html/);
  });

  for (const type of ['text/plain', undefined]) {
    test(`Content-Type ${type} leaves the body unread`, async () => {
      const body = new TextEncoder().encode(JSON.stringify({ messages: [good] }));
      const response = await post(realtime, body, { headers: { 'content-type': type } });
      assert.deepEqual([response.status, response.body], [422, complaints(...BLANK)]);
    });
  }

  test('one bad message keeps the good ones back', async () => {
    const socket = await listen('realtime:atomic');
    await post(realtime, { messages: [message('atomic'), { topic: 'atomic' }] });
    await post(realtime, { messages: [message('atomic', { event: 'last' })] });
    assert.deepEqual((await received(socket)).map(({ event }) => event), ['last']);
  });

  test('a payload over the limit is 422, one under it passes', async () => {
    const send = (/** @type {number} */ length) =>
      post(realtime, { messages: [message('room', { payload: { a: 'x'.repeat(length) } })] });
    assert.equal((await send(3_000_450)).status, 202);
    const { status, body } = await send(3_000_500);
    assert.equal(status, 422);
    assert.deepEqual(body, complaints({ payload: ['Payload size exceeds tenant limit'] }));
  });

  test('a body over 8,000,000 bytes is 413, one of them is not', async () => {
    const fill = (/** @type {number} */ length) => `{"a":"${'x'.repeat(length - 8)}"}`;
    const { status, body } = await post(realtime, fill(8_000_001));
    assert.deepEqual([status, body], [413, 'Request Entity Too Large']);
    assert.equal((await post(realtime, fill(8_000_000))).status, 422);
  });

  test('the list arrives in its order, on the bare topic', async () => {
    const socket = await listen('realtime:order');
    const messages = Array.from({ length: 200 }, (_, n) => message('order', { payload: { n } }));
    assert.equal((await post(realtime, { messages })).status, 202);
    const numbers = (await received(socket)).map(({ payload }) => payload.n);
    assert.deepEqual(numbers, messages.map((_, n) => n));
  });

  test('a topic with realtime: in it is another topic', async () => {
    const socket = await listen('realtime:prefixed');
    await post(realtime, { messages: [message('realtime:prefixed')] });
    assert.deepEqual(await received(socket), []);
  });

  test('an id is delivered as meta, and there is no meta without', async () => {
    const socket = await listen('realtime:meta');
    await post(realtime, { messages: [message('meta', { id: 'i' }), message('meta')] });
    assert.deepEqual(await received(socket), [
      { type: 'broadcast', event: 'ev', payload: { n: 1 }, meta: { id: 'i' } },
      { type: 'broadcast', event: 'ev', payload: { n: 1 } },
    ]);
  });

  test('public messages go first, and private ones by topic', async () => {
    const socket = await RawSocket.open(realtime, { token: SERVICE });
    for (const topic of ['realtime:y', 'realtime:x']) await socket.join(topic, { private: true });
    await socket.join('realtime:z');
    const hidden = { private: true };
    await post(realtime, {
      messages: [message('y', hidden), message('x', hidden), message('z'), message('y', hidden)],
    });
    await socket.heartbeat();
    const topics = socket.framesOf('broadcast').map(({ topic }) => topic);
    assert.deepEqual(topics, ['realtime:z', 'realtime:x', 'realtime:y', 'realtime:y']);
  });

  test('public and private topics of one name are two', async () => {
    const open = await listen('realtime:two', { token: SERVICE });
    const closed = await listen('realtime:two', { token: SERVICE, config: { private: true } });
    await post(realtime, { messages: [message('two', { event: 'public' })] });
    await post(realtime, { messages: [message('two', { event: 'private', private: true })] });
    assert.deepEqual((await received(open)).map(({ event }) => event), ['public']);
    assert.deepEqual((await received(closed)).map(({ event }) => event), ['private']);
  });

  test('a private message without permission is 202 and goes nowhere', async () => {
    const socket = await listen('realtime:silent', { token: SERVICE, config: { private: true } });
    const messages = [message('silent', { private: true })];
    assert.equal((await post(realtime, { messages }, { token: ANON })).status, 202);
    assert.deepEqual(await received(socket), []);
    assert.equal((await post(realtime, { messages }, { token: SERVICE })).status, 202);
    assert.equal((await received(socket)).length, 1);
  });
});

describe('a single message', () => {
  const single = (/** @type {string} */ topic, event = 'ev', query = '') =>
    `/api/broadcast/${encodeURIComponent(topic)}/events/${encodeURIComponent(event)}${query}`;

  test('its body is the payload', async () => {
    const socket = await listen('realtime:a/b c');
    const { status, body } = await post(realtime, { a: [1] }, { path: single('a/b c', 'é/v') });
    assert.deepEqual([status, body], [202, '']);
    await socket.nextEvent('broadcast');
    assert.deepEqual(await received(socket), [
      { type: 'broadcast', event: 'é/v', payload: { a: [1] } },
    ]);
    assert.equal(socket.framesOf('broadcast')[0].form, 'binary');
  });

  /** @type {[string, unknown, unknown][]} */
  const BODIES = [
    ['a list', [1, 2], { _json: [1, 2] }],
    ['a number', '7', { _json: 7 }],
    ['nothing', '', {}],
  ];
  for (const [name, body, payload] of BODIES) {
    test(`${name} arrives as ${JSON.stringify(payload)}`, async () => {
      const socket = await listen('realtime:bodies');
      await post(realtime, body, { path: single('bodies') });
      await socket.nextEvent('broadcast');
      assert.deepEqual((await received(socket))[0].payload, payload);
    });
  }

  test('bytes reach version 2 and not version 1', async () => {
    const old = await listen('realtime:bin', { version: 1 });
    const young = await listen('realtime:bin');
    const headers = { 'content-type': 'application/octet-stream' };
    await post(realtime, Buffer.from([1, 2, 255]), { path: single('bin'), headers });
    await post(realtime, new Uint8Array(0), { path: single('bin'), headers });
    await post(realtime, { json: true }, { path: single('bin') });
    const payloads = (await received(young)).map(({ payload }) => payload);
    assert.deepEqual(payloads, [Buffer.from([1, 2, 255]), Buffer.alloc(0), { json: true }]);
    assert.deepEqual((await received(old)).map(({ payload }) => payload), [{ json: true }]);
  });

  test('another Content-Type is 415, parameters are not', async () => {
    const send = (/** @type {string} */ type) =>
      post(realtime, '{}', { path: single('t'), headers: { 'content-type': type } });
    const { status, body } = await send('text/plain');
    assert.equal(status, 415);
    assert.match(body.error, /^Unsupported Media Type\. Use application\/json/);
    assert.equal((await send('application/json; charset=utf-8')).status, 202);
  });

  test('private is told when it is refused', async () => {
    const path = single('p', 'ev', '?private=true');
    const refused = await post(realtime, {}, { path, token: ANON });
    const message_ = 'Tenant database unavailable';
    assert.deepEqual([refused.status, refused.body], [422, { message: message_ }]);
    assert.equal((await post(realtime, {}, { path, token: SERVICE })).status, 202);
  });

  test('only the word true makes it private, and a key of the payload decides', async () => {
    const open = await listen('realtime:flag', { token: SERVICE });
    const send = (/** @type {unknown} */ body, query = '') =>
      post(realtime, body, { path: single('flag', 'ev', query) });
    await send({ n: 1 }, '?private=1');
    await send({ n: 2, private: true });
    await send({ n: 3, private: false }, '?private=true');
    await send({ n: 4 }, '?private=true');
    assert.deepEqual((await received(open)).map(({ payload }) => payload.n), [1, 3]);
  });

  test('a payload over the limit is 422', async () => {
    const large = { a: 'x'.repeat(3_000_500) };
    const { status, body } = await post(realtime, large, { path: single('t') });
    assert.equal(status, 422);
    assert.deepEqual(body, { errors: { payload: ['Payload size exceeds tenant limit'] } });
  });

  test('a topic too long for a binary frame is 500 where version 2 listens', async () => {
    const topic = 'x'.repeat(250);
    const path = single(topic);
    assert.equal((await post(realtime, {}, { path })).status, 202);
    const socket = await listen(`realtime:${topic}`);
    assert.equal((await post(realtime, {}, { path })).status, 500);
    assert.equal((await post(realtime, { messages: [message(topic)] })).status, 202);
    assert.equal((await received(socket)).length, 1);
  });
});

describe('around the routes', () => {
  beforeEach(() => realtime.suspend(false));

  /** A request whose Host may be anything, which fetch does not allow. */
  const ask = (/** @type {import('node:http').RequestOptions} */ options, body = '{}') =>
    new Promise((resolve, reject) => {
      const headers = { 'content-type': 'application/json', ...options.headers };
      const how = { method: 'POST', ...options, headers };
      const outgoing = request(realtime.url, how, (response) => {
        response.setEncoding('utf8');
        let text = '';
        response.on('data', (chunk) => (text += chunk));
        response.on('end', () => resolve({ status: response.statusCode, text }));
      });
      outgoing.on('error', reject).end(body);
    });

  test('an unknown Host is 401, the name of the tenant is taken', async () => {
    const call = (/** @type {string} */ host) =>
      ask({ path: '/api/broadcast', headers: { host, authorization: `Bearer ${SERVICE}` } });
    const text = '{"message":"Tenant not found in database"}';
    assert.deepEqual(await call('other.example.com'), { status: 401, text });
    assert.equal((await call('realtime-dev.example.com')).status, 422);
    assert.equal((await call('localhost:4000')).status, 422);
  });

  test('when strict, a loopback address is no tenant', async () => {
    const strict = await start({ strictHost: true, tenantId: 'abc' });
    try {
      const { status, body } = await post(strict, { messages: [message('room')] });
      assert.deepEqual([status, body], [401, { message: 'Tenant not found in database' }]);
      const socket = RawSocket.open(strict, { headers: { host: 'xyz.localhost' } });
      await assert.rejects(socket, /404/);
      (await RawSocket.open(strict, { headers: { host: 'abc.example.com' } })).close();
    } finally {
      await strict.stop();
    }
  });

  test('a suspended tenant is 403', async () => {
    realtime.suspend(true);
    const { status, body } = await post(realtime, {});
    assert.deepEqual([status, body], [403, { message: 'Tenant is suspended' }]);
    await assert.rejects(RawSocket.open(realtime), /403/);
  });

  test('the earlier check wins', async () => {
    realtime.suspend(true);
    const bad = { token: 'bad' };
    assert.equal((await post(realtime, '{', { path: '/nowhere' })).status, 400);
    assert.equal((await post(realtime, {}, { path: '/nowhere' })).status, 404);
    const html = { accept: 'text/html' };
    assert.equal((await post(realtime, {}, { ...bad, headers: html })).status, 406);
    const host = { host: 'other.example.com', accept: '*/*' };
    assert.equal((await ask({ path: '/api/broadcast', headers: host })).status, 401);
    assert.equal((await post(realtime, {}, bad)).status, 401);
    assert.equal((await post(realtime, {})).status, 403);
  });

  test('other methods and paths are 404', async () => {
    for (const [method, path] of [['GET', '/api/broadcast'], ['PUT', '/api/broadcast'],
      ['POST', '/api/broadcasts'], ['POST', '/api/ping'], ['POST', '/api/broadcast/x'],
      ['OPTIONS', '/api/broadcast']]) {
      const response = await post(realtime, undefined, { method, path });
      assert.deepEqual([response.status, response.body], [404, 'Not Found'], `${method} ${path}`);
      assert.match(response.type, /^text\/html/);
    }
  });

  test('ping, health, and their gateway', async () => {
    for (const prefix of ['', '/realtime/v1']) {
      const get = (/** @type {string} */ path) =>
        post(realtime, undefined, { method: 'GET', path: prefix + path });
      assert.deepEqual((await get('/api/ping')).body, { message: 'Success' });
      assert.equal((await get('/healthcheck')).body, 'ok');
      const path = `${prefix}/api/broadcast`;
      assert.equal((await post(realtime, { messages: [message('room')] }, { path })).status, 202);
      const socketPath = prefix ? `${prefix}/websocket` : undefined;
      (await RawSocket.open(realtime, { path: socketPath })).close();
    }
  });

  test('answers have the headers of Realtime', async () => {
    const { headers } = await post(realtime, { messages: [message('room')] });
    assert.equal(headers.get('server'), 'Cowboy');
    assert.ok(headers.get('x-request-id'));
    assert.match(headers.get('x-rate-rolling') ?? '', /^\d+$/);
    assert.equal(headers.get('access-control-allow-origin'), null);
    const cross = await post(realtime, {}, { headers: { origin: 'http://example.com' } });
    assert.equal(cross.headers.get('access-control-allow-origin'), '*');
  });

  test('the gateway answers preflights', async () => {
    const { status, headers } = await post(realtime, undefined, {
      method: 'OPTIONS',
      path: '/realtime/v1/api/broadcast',
      headers: { 'access-control-request-headers': 'apikey,content-type' },
    });
    assert.equal(status, 204);
    assert.equal(headers.get('access-control-allow-headers'), 'apikey,content-type');
  });

  test('a header of 8,000 bytes is 431, one of 4,200 passes', async () => {
    const send = (/** @type {number} */ length) =>
      post(realtime, { messages: [message('room')] },
        { headers: { 'x-long': 'x'.repeat(length) } });
    assert.equal((await send(8_000)).status, 431);
    assert.equal((await send(4_200)).status, 202);
  });
});
