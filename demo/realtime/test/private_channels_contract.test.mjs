// @ts-check
/**
 * The contract of private channels, on a database with policies:
 *
 * 1. whoever the policies let read may join, and nobody else; a broken policy is a no;
 * 2. whoever they let insert may send: asked once for a channel and token, and once per HTTP
 *    request and topic; without permission a push is dropped without a word;
 * 3. the probes leave nothing behind;
 * 4. a token that expires or is replaced by a lesser one closes the channel, and says why;
 * 5. a member who is removed goes on receiving until the next token: the answer is kept;
 * 6. a database that cannot answer is told by its code: joins and the single route say why, a batch
 *    is 202 and goes nowhere, public messages by HTTP pass.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { RawSocket } from './support/raw_socket.mjs';
import {
  ALICE, ANON, BOB, SERVICE, message, nowS, post, start, startWithDatabase, tokenOf, waitUntil,
} from './support/stage.mjs';

/** @type {Awaited<ReturnType<typeof startWithDatabase>>} */
let stage;
before(async () => (stage = await startWithDatabase({ tokenCheckMs: 60_000 })));
after(async () => {
  await stage?.realtime.stop();
  await stage?.cluster.stop();
});

const A = 'notifications:org_a';
const WIRE_A = `realtime:${A}`;
const DENIED = `Unauthorized: You do not have permissions to read from this Channel topic: ${A}`;

/**
 * @param {string} token
 * @param {{ config?: Record<string, unknown>, topic?: string }} [options]
 */
async function join(token, { config = {}, topic = A } = {}) {
  const socket = await RawSocket.open(stage.realtime, { token });
  const { status, response } = await socket.join(`realtime:${topic}`, { private: true, ...config });
  return { socket, status, response };
}

const hidden = (/** @type {Record<string, unknown>} */ fields = {}) =>
  message(A, { private: true, ...fields });

describe('joining', () => {
  /** @type {[string, string, string, string | null][]} */
  const CASES = [
    ['a member', tokenOf(ALICE), A, null],
    ['a member of another organisation', tokenOf(BOB), A, DENIED],
    ['anon', ANON, A, DENIED],
    ['service_role', SERVICE, A, null],
    ['a role that does not exist', tokenOf(ALICE, { role: 'nobody' }), A, DENIED],
    ['somebody whose id is no uuid', tokenOf('x'), A, DENIED],
    ['a topic whose policy fails', tokenOf(ALICE), 'broken',
      'Unauthorized: You do not have permissions to read from this Channel topic: broken'],
  ];
  for (const [name, token, topic, reason] of CASES) {
    test(`${name} is ${reason ? 'refused' : 'let in'}`, async () => {
      const { status, response } = await join(token, { topic });
      if (reason) assert.deepEqual([status, response], ['error', { reason }]);
      else assert.equal(status, 'ok');
    });
  }

  test('presence alone is enough, and then no broadcast arrives', async () => {
    await stage.cluster.psql(`create policy watch on realtime.messages for select to anon
      using (extension = 'presence' and realtime.topic() = 'watched')`);
    const config = { presence: { enabled: true } };
    const { socket, status } = await join(ANON, { topic: 'watched', config });
    assert.equal(status, 'ok');
    await post(stage.realtime, { messages: [message('watched', { private: true })] });
    await socket.heartbeat();
    assert.equal(socket.framesOf('broadcast').length, 0);
    assert.equal((await join(ANON, { topic: 'watched' })).status, 'error');
  });

  test('policies see the topic, the claims and the headers', async () => {
    await stage.cluster.psql(`create policy curious on realtime.messages for select to authenticated
      using (realtime.topic() = 'curious'
        and auth.uid() = '${ALICE}' and auth.role() = 'authenticated'
        and auth.jwt() ->> 'colour' = 'red'
        and current_setting('request.headers')::jsonb ->> 'x-client-info' = 'raw')`);
    const open = async (/** @type {string} */ colour, /** @type {string} */ info) => {
      const token = tokenOf(ALICE, { colour });
      const headers = { 'x-client-info': info };
      const socket = await RawSocket.open(stage.realtime, { token, headers });
      return (await socket.join('realtime:curious', { private: true })).status;
    };
    assert.equal(await open('red', 'raw'), 'ok');
    assert.equal(await open('blue', 'raw'), 'error');
    assert.equal(await open('red', 'other'), 'error');
  });
});

describe('sending', () => {
  test('by HTTP: only what the policies allow arrives, only the single route tells', async () => {
    const { socket } = await join(tokenOf(ALICE));
    const path = `/api/broadcast/${A}/events/ev?private=true`;
    const sending = tokenOf(ALICE, { sends: true });
    const batch = (/** @type {string} */ event) => ({ messages: [hidden({ event })] });

    assert.equal((await post(stage.realtime, batch('1'), { token: tokenOf(ALICE) })).status, 202);
    assert.equal((await post(stage.realtime, batch('2'), { token: tokenOf(BOB) })).status, 202);
    assert.equal((await post(stage.realtime, batch('3'), { token: sending })).status, 202);
    assert.equal((await post(stage.realtime, batch('4'))).status, 202);
    const refused = await post(stage.realtime, {}, { path, token: tokenOf(ALICE) });
    assert.deepEqual([refused.status, refused.body], [403, { message: 'Unauthorized' }]);
    assert.equal((await post(stage.realtime, {}, { path, token: sending })).status, 202);

    await socket.heartbeat();
    const events = socket.framesOf('broadcast').map(({ payload }) => payload.event);
    assert.deepEqual(events, ['3', '4', 'ev']);
  });

  test('of a mixed batch only the allowed topic arrives', async () => {
    const a = await join(tokenOf(ALICE));
    const b = await join(tokenOf(BOB), { topic: 'notifications:org_b' });
    const token = tokenOf(BOB, { sends: true });
    const messages = [hidden(), message('notifications:org_b', { private: true })];
    assert.equal((await post(stage.realtime, { messages }, { token })).status, 202);
    await a.socket.heartbeat();
    await b.socket.heartbeat();
    assert.equal(a.socket.framesOf('broadcast').length, 0);
    assert.equal(b.socket.framesOf('broadcast').length, 1);
  });

  test('the other organisation receives nothing, also not on the public channel', async () => {
    const b = await join(tokenOf(BOB), { topic: 'notifications:org_b' });
    await b.socket.join(WIRE_A);
    await post(stage.realtime, { messages: [hidden()] });
    await b.socket.heartbeat();
    assert.equal(b.socket.framesOf('broadcast').length, 0);
  });

  test('by socket: without permission there is no reply, also with ack', async () => {
    const config = { broadcast: { ack: true } };
    const [reader, writer, listener] = [
      await join(tokenOf(ALICE), { config }),
      await join(tokenOf(ALICE, { sends: true }), { config }),
      await join(tokenOf(ALICE)),
    ];
    const say = { type: 'broadcast', event: 'say', payload: {} };
    const dropped = reader.socket.push(WIRE_A, 'broadcast', say);
    await reader.socket.heartbeat();
    assert.ok(!reader.socket.framesOf('phx_reply').some(({ ref }) => ref === dropped));
    assert.equal(listener.socket.framesOf('broadcast').length, 0);

    const ref = writer.socket.push(WIRE_A, 'broadcast', say);
    assert.equal((await writer.socket.replyTo(ref)).payload.status, 'ok');
    await listener.socket.heartbeat();
    assert.equal(listener.socket.framesOf('broadcast').length, 1);
  });

  test('a policy that fails is 422 on the single route and silent in a batch', async () => {
    await stage.cluster.psql(`create policy broken_write on realtime.messages for insert to anon
      with check (1 / (length(topic) - 6) = 1)`);
    const path = '/api/broadcast/broken/events/ev?private=true';
    const { status, body } = await post(stage.realtime, {}, { path, token: ANON });
    assert.deepEqual([status, body], [422, { message: 'RLS policy error' }]);
    const messages = [message('broken', { private: true })];
    assert.equal((await post(stage.realtime, { messages }, { token: ANON })).status, 202);
  });

  test('the probes leave nothing behind', async () => {
    await join(tokenOf(ALICE), { config: { presence: { enabled: true } } });
    await post(stage.realtime, { messages: [hidden()] });
    assert.equal(await stage.cluster.psql('select count(*) from realtime.messages'), '0');
  });

  test('the day without a partition is told', async () => {
    const partitions = (await stage.cluster.psql(`
      select inhrelid::regclass from pg_inherits where inhparent = 'realtime.messages'::regclass`
    )).split('\n');
    assert.equal(partitions.length, 5);
    const each = (/** @type {(name: string) => string} */ sql) =>
      stage.cluster.psql(partitions.map(sql).join(';'));
    const bounds = await each((name) => `select pg_get_expr(relpartbound, oid) from pg_class
      where oid = '${name}'::regclass`);
    await each((name) => `alter table realtime.messages detach partition ${name}`);
    try {
      const { response } = await join(tokenOf(ALICE));
      assert.match(response.reason, /^MissingPartition: Realtime was unable to find the expected/);
      const path = `/api/broadcast/${A}/events/ev?private=true`;
      const { status, body } = await post(stage.realtime, {}, { path });
      assert.deepEqual([status, body], [422, { message: 'Missing messages partition' }]);
    } finally {
      const [...values] = bounds.split('\n');
      await each((name) => `alter table realtime.messages
        attach partition ${name} ${values[partitions.indexOf(name)]}`);
    }
    assert.equal((await join(tokenOf(ALICE))).status, 'ok');
  });
});

describe('the life of a token', () => {
  /** @param {RawSocket} socket */
  async function closing(socket) {
    const close = await socket.nextEvent('phx_close');
    const [system] = socket.framesOf('system');
    assert.ok(socket.frames.indexOf(system) < socket.frames.indexOf(close));
    assert.deepEqual({ ...system.payload, message: '' }, {
      extension: 'system', status: 'error', message: '', channel: A,
    });
    return system.payload.message;
  }

  test('when it expires the channel is closed within a second', async () => {
    const exp = nowS() + 2;
    const { socket } = await join(tokenOf(ALICE, { exp }));
    assert.match(await closing(socket), /^Token has expired [01] seconds ago$/);
    assert.equal(socket.closeCode, null);
    await post(stage.realtime, { messages: [hidden()] });
    await socket.heartbeat();
    assert.equal(socket.framesOf('broadcast').length, 0);
  });

  test('a fresh one in time keeps it open, without a reply', async () => {
    const exp = nowS() + 2;
    const { socket } = await join(tokenOf(ALICE, { exp }));
    const ref = socket.push(WIRE_A, 'access_token', { access_token: tokenOf(ALICE) });
    await waitUntil(() => Date.now() / 1000 > exp + 0.5, 'the first token to expire');
    await post(stage.realtime, { messages: [hidden()] });
    await socket.heartbeat();
    assert.equal(socket.framesOf('broadcast').length, 1);
    assert.ok(!socket.framesOf('phx_reply').some((frame) => frame.ref === ref));
  });

  for (const token of [null, 'sb_secret_x', 7]) {
    test(`${token} in its place is ignored`, async () => {
      const { socket } = await join(tokenOf(ALICE));
      socket.push(WIRE_A, 'access_token', { access_token: token });
      await socket.heartbeat();
      assert.equal(socket.framesOf('phx_close').length, 0);
    });
  }

  /** @type {[string, () => string, RegExp][]} */
  const WORSE = [
    ['what is no token', () => 'x', /^The token provided is not a valid JWT$/],
    ['an expired one', () => tokenOf(ALICE, { exp: nowS() - 9 }),
      /^Token has expired \d+ seconds ago$/],
    ['one of another organisation', () => tokenOf(BOB),
      /^You do not have permissions to read from this Channel topic: notifications:org_a$/],
  ];
  for (const [name, token, reason] of WORSE) {
    test(`${name} in its place closes the channel`, async () => {
      const { socket } = await join(tokenOf(ALICE));
      socket.push(WIRE_A, 'access_token', { access_token: token() });
      assert.match(await closing(socket), reason);
    });
  }

  test('one that loses a part closes it too', async () => {
    const config = { presence: { enabled: true } };
    const { socket } = await join(tokenOf(ALICE, { present: true }), { config });
    socket.push(WIRE_A, 'access_token', { access_token: tokenOf(ALICE) });
    const message_ = 'You no longer have permission to read from this Channel topic: ';
    assert.equal(await closing(socket), message_ + A);
  });

  test('permission to write is asked again with a new token', async () => {
    const { socket } = await join(tokenOf(ALICE), { config: { broadcast: { ack: true } } });
    const say = { type: 'broadcast', event: 'say', payload: {} };
    socket.push(WIRE_A, 'broadcast', say);
    socket.push(WIRE_A, 'access_token', { access_token: tokenOf(ALICE, { sends: true }) });
    const ref = socket.push(WIRE_A, 'broadcast', say);
    assert.equal((await socket.replyTo(ref)).payload.status, 'ok');
  });

  test('who was removed receives until the next token', async () => {
    const { socket } = await join(tokenOf(ALICE));
    await stage.cluster.psql(`delete from memberships where org = 'a'`);
    try {
      await post(stage.realtime, { messages: [hidden()] });
      await socket.heartbeat();
      assert.equal(socket.framesOf('broadcast').length, 1);
      assert.equal((await join(tokenOf(ALICE))).response.reason, DENIED);
      socket.push(WIRE_A, 'access_token', { access_token: tokenOf(ALICE, { fresh: true }) });
      assert.match(await closing(socket), /^You do not have permissions to read/);
    } finally {
      await stage.cluster.psql(`insert into memberships values ('${ALICE}', 'a')`);
    }
  });
});

describe('a database that cannot answer', () => {
  const path = `/api/broadcast/${A}/events/ev?private=true`;

  test('no connection left in the pool: joins and the single route say so', async () => {
    const realtime = await start({
      databaseUrl: stage.cluster.url(), databaseConnections: 1, databaseConnectTimeoutMs: 300,
    });
    await stage.cluster.psql(`create policy slow on realtime.messages for insert to anon
      with check (topic <> 'slow' or pg_sleep(60) is not null)`);
    const holder = post(realtime, {}, { path: path.replace(A, 'slow'), token: ANON });
    const isHeld = `select pid from pg_stat_activity
      where application_name = 'realtime' and query like 'insert into realtime.messages%'
        and wait_event = 'PgSleep'`;
    const pid = await waitUntil(() => stage.cluster.psql(isHeld), 'the only connection to be used');
    const { status, body } = await post(realtime, {}, { path });
    assert.deepEqual([status, body], [429, { message: 'Connection pool exhausted' }]);
    const socket = await RawSocket.open(realtime, { token: SERVICE });
    const { response } = await socket.join(WIRE_A, { private: true });
    const reason = 'IncreaseConnectionPool: Please increase your connection pool size';
    assert.equal(response.reason, reason);
    await stage.cluster.psql(`select pg_cancel_backend(${pid})`);
    const cancelled = await holder;
    assert.deepEqual([cancelled.status, cancelled.body], [422, { message: 'Query canceled' }]);
    await realtime.stop();
  });

  test('a join whose query is cancelled says so', async () => {
    await stage.cluster.psql(`create policy slow_read on realtime.messages for select to anon
      using (topic = 'slow' and pg_sleep(60) is not null)`);
    const joining = join(ANON, { topic: 'slow' });
    const isSlow = `select pid from pg_stat_activity
      where application_name = 'realtime' and wait_event = 'PgSleep'`;
    const pid = await waitUntil(() => stage.cluster.psql(isSlow), 'the policy to be slow');
    await stage.cluster.psql(`select pg_cancel_backend(${pid})`);
    const { response } = await joining;
    assert.equal(response.reason, 'QueryCanceled: Query was cancelled, please try again');
  });
});

describe('a database that is away', () => {
  test('joins are refused, silent 202 for a batch, 422 for a single, and it recovers', async () => {
    const { cluster, realtime } = stage;
    const { socket } = await join(tokenOf(ALICE));
    await cluster.halt();
    const reason =
      'UnableToConnectToProject: Realtime was unable to connect to the project database';
    assert.equal((await join(tokenOf(ALICE))).response.reason, reason);
    const open = await RawSocket.open(realtime);
    assert.equal((await open.join('realtime:open')).response.reason, reason);
    assert.equal((await post(realtime, { messages: [hidden()] })).status, 202);
    const path = `/api/broadcast/${A}/events/ev?private=true`;
    const { status, body } = await post(realtime, {}, { path });
    assert.deepEqual([status, body], [422, { message: 'Tenant database unavailable' }]);
    assert.equal((await post(realtime, { messages: [message('open')] })).status, 202);
    await cluster.start();
    await post(realtime, { messages: [hidden({ event: 'after' })] });
    await socket.heartbeat();
    assert.deepEqual(socket.framesOf('broadcast').map(({ payload }) => payload.event), ['after']);
  });
});
