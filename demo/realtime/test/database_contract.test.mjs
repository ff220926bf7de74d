// @ts-check
/**
 * The contract of the database:
 *
 * 1. the schema is there after the start, and somebody's own is left as it was;
 * 2. realtime.send, send_binary and broadcast_changes reach private subscribers after commit, with
 *    the row's id, as binary under protocol 2; rolled back ones never;
 * 3. a failure to send is a warning and not an error;
 * 4. replay gives the newest rows, oldest first, marked, and none of them twice;
 * 5. rows over a limit are dropped and not sent later; the log says so;
 * 6. without logical decoding everything else works, and the log says it once.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { RawSocket } from './support/raw_socket.mjs';
import {
  ALICE, SERVICE, message, post, start, startWithDatabase, tokenOf, waitUntil,
} from './support/stage.mjs';

const TOPIC = 'notifications:org_a';
const WIRE = `realtime:${TOPIC}`;

/** @type {Awaited<ReturnType<typeof startWithDatabase>>} */
let stage;
/** @type {string[]} */
const log = [];
before(async () => (stage = await startWithDatabase({ log: (line) => log.push(line) })));
after(async () => {
  await stage?.realtime.stop();
  await stage?.cluster.stop();
});

/** @param {Record<string, unknown>} [config] @param {1 | 2} [version] */
async function listen(config = {}, version = 2) {
  const token = tokenOf(ALICE);
  const socket = await RawSocket.open(stage.realtime, { token, version });
  const broadcast = { replication_ready: true, .../** @type {any} */ (config).broadcast };
  const { status, response } = await socket.join(WIRE, { private: true, ...config, broadcast });
  assert.equal(status, 'ok', response.reason);
  const { payload } = await socket.nextEvent('system');
  assert.deepEqual(payload, {
    extension: 'system', status: 'ok', channel: TOPIC,
    message: 'Replication connection established',
  });
  return socket;
}

const sql = (/** @type {string} */ text) => stage.cluster.psql(text);
const send = (/** @type {string} */ payload, event = 'ev') =>
  sql(`select realtime.send('${payload}', '${event}', '${TOPIC}')`);

describe('the schema', () => {
  test('has what policies and applications use', async () => {
    assert.equal(
      await sql(`select relkind, relrowsecurity, pg_get_userbyid(relowner)
        from pg_class where oid = 'realtime.messages'::regclass`),
      'p|t|supabase_realtime_admin',
    );
    assert.equal(
      await sql(`select rolname, rolbypassrls from pg_roles
        where rolname in ('anon', 'authenticated', 'service_role') order by 1`),
      'anon|f\nauthenticated|f\nservice_role|t',
    );
    const today = new Date().toISOString().slice(0, 10).replaceAll('-', '_');
    assert.equal(await sql(`select to_regclass('realtime.messages_${today}') is not null`), 't');
    assert.equal(await sql(`select auth.uid() is null, realtime.topic() is null`), 't|t');
  });

  test('a second server finds it and adds nothing', async () => {
    const objects = () => sql(`select string_agg(oid::text, ',' order by oid) from pg_class
      where relnamespace = 'realtime'::regnamespace`);
    const before_ = await objects();
    const second = await start({ databaseUrl: stage.cluster.url() });
    await second.stop();
    assert.equal(await objects(), before_);
  });

  test('two servers may start at once, and an auth schema is left alone', async () => {
    await sql('create database fresh');
    const url = stage.cluster.url('fresh');
    await stage.cluster.psql('create schema auth', { database: 'fresh' });
    const both = await Promise.all([start({ databaseUrl: url }), start({ databaseUrl: url })]);
    await Promise.all(both.map((server) => server.stop()));
    const functions = await stage.cluster.psql(
      `select count(*) from pg_proc where pronamespace = 'auth'::regnamespace`,
      { database: 'fresh' });
    assert.equal(functions, '0');
  });
});

describe('sending from SQL', () => {
  test('send arrives after commit, with an id; public and rolled back ones do not', async () => {
    const [young, old] = [await listen(), await listen({}, 1)];
    await sql(`begin; select realtime.send('{"n":0}', 'ev', '${TOPIC}'); rollback`);
    await sql(`select realtime.send('{"n":0}', 'ev', '${TOPIC}', false)`);
    await send('{"n":1}');
    await send('{"n":2,"id":"mine"}');
    for (const socket of [young, old]) {
      await socket.next(() => socket.framesOf('broadcast').length >= 2, 'two messages');
      const [first, second] = socket.framesOf('broadcast').map(({ payload }) => payload);
      assert.match(first.meta.id, /^[0-9a-f-]{36}$/);
      assert.deepEqual(first, {
        type: 'broadcast', event: 'ev', payload: { n: 1, id: first.meta.id }, meta: first.meta,
      });
      assert.deepEqual(second.payload, { n: 2, id: 'mine' });
      assert.notEqual(second.meta.id, 'mine');
    }
    const forms = [young, old].map((socket) => socket.framesOf('broadcast')[0].form);
    assert.deepEqual(forms, ['binary', 'text']);
  });

  test('bytes reach version 2 and not version 1', async () => {
    const [young, old] = [await listen(), await listen({}, 1)];
    await sql(`select realtime.send_binary('\\x00ff', 'bytes', '${TOPIC}')`);
    await send('{}', 'last');
    await old.next(({ payload }) => payload?.event === 'last', 'the last');
    await young.next(({ payload }) => payload?.event === 'last', 'the last');
    const payloads = young.framesOf('broadcast').map(({ payload }) => payload.payload);
    assert.deepEqual(payloads[0], Buffer.from([0, 255]));
    assert.equal(old.framesOf('broadcast').length, 1);
  });

  test('broadcast_changes of a trigger', async () => {
    const socket = await listen();
    await sql(`
      create table public.t (id int, word text);
      create function public.tell() returns trigger language plpgsql as $$
      begin
        perform realtime.broadcast_changes('${TOPIC}', tg_op, tg_op,
          tg_table_name, tg_table_schema, new, old);
        return null;
      end $$;
      create trigger tell after insert or update or delete on public.t
        for each row execute function public.tell();
      insert into public.t values (1, 'a');
      update public.t set word = 'b';
      delete from public.t`);
    await socket.next(() => socket.framesOf('broadcast').length >= 3, 'three messages');
    const contents = socket.framesOf('broadcast').map(({ payload }) => payload);
    const at = { schema: 'public', table: 't' };
    const [a, b] = [{ id: 1, word: 'a' }, { id: 1, word: 'b' }];
    assert.deepEqual(contents.map(({ event, payload: { id, ...rest } }) => [event, rest]), [
      ['INSERT', { ...at, operation: 'INSERT', record: a, old_record: null }],
      ['UPDATE', { ...at, operation: 'UPDATE', record: b, old_record: a }],
      ['DELETE', { ...at, operation: 'DELETE', record: null, old_record: b }],
    ]);
    await assert.rejects(
      sql(`select realtime.broadcast_changes('x', 'e', 'TRUNCATE', 't', 's', null::t, null::t)`),
      /invalid operation TRUNCATE/);
  });

  test('a failure is a warning', async () => {
    const answer = await sql(`
      set role authenticated;
      select realtime.send('{}', 'ev', 'somewhere') is not null, 'still here'`);
    assert.equal(answer, 't|still here');
    const warning = /WARNING:\s+WarnSendingBroadcastMessage: new row violates/;
    assert.match(await stage.cluster.log(), warning);
  });

  test('an event that does not fit a frame is dropped, and the next one arrives', async () => {
    const socket = await listen();
    await send('{}', 'x'.repeat(300));
    await send('{}', 'fits');
    await socket.next(({ payload }) => payload?.event === 'fits', 'the next one');
    assert.equal(socket.framesOf('broadcast').length, 1);
    assert.match(log.join('\n'), /message [0-9a-f-]{36} dropped/);
  });
});

describe('rows over a limit', () => {
  test('one that is too large is dropped, and the next one arrives', async () => {
    stage.realtime.setLimits({ payloadKb: 1 });
    const socket = await listen();
    await send(JSON.stringify({ text: 'x'.repeat(1_600) }), 'large');
    await send('{}', 'small');
    await socket.next(({ payload }) => payload?.event === 'small', 'the small one');
    stage.realtime.setLimits({ payloadKb: 3000 });
    assert.equal(socket.framesOf('broadcast').length, 1);
    assert.match(log.join('\n'), /message [0-9a-f-]{36} dropped: it is too large/);
  });

  test('while the tenant is overrun they are dropped, and nobody is closed', async () => {
    let now = 0;
    /** @type {string[]} */
    const lines = [];
    const realtime = await start({
      databaseUrl: stage.cluster.url(), clock: () => now, limits: { eventsPerSecond: 10 },
      log: (line) => lines.push(line),
    });
    const socket = await RawSocket.open(realtime, { token: tokenOf(ALICE) });
    const config = { private: true, broadcast: { replication_ready: true } };
    assert.equal((await socket.join(WIRE, config)).status, 'ok');
    await socket.nextEvent('system');
    for (let turn = 0; turn < 10; turn += 1) {
      const messages = Array.from({ length: 10 }, () => message('nobody'));
      assert.equal((await post(realtime, { messages })).status, 202);
    }
    now += 5_000;
    await send('{}', 'in the overrun');
    await waitUntil(() => lines.some((line) => line.includes('too many messages per second')),
      'the row to be dropped');
    now += 60_000;
    await send('{}', 'after it');
    await socket.nextEvent('broadcast');
    const events = socket.framesOf('broadcast').map(({ payload }) => payload.event);
    assert.deepEqual(events, ['after it']);
    assert.equal(socket.framesOf('phx_close').length, 0);
    await realtime.stop();
  });
});

describe('replay', () => {
  const numbers = (/** @type {RawSocket} */ socket) =>
    socket.framesOf('broadcast').map(({ payload }) => payload.payload.n);

  before(async () => {
    await sql(`delete from realtime.messages`);
    // A transaction each, for inserted_at is when that began.
    await sql(`do $$ begin
      for n in 1..30 loop
        perform realtime.send(jsonb_build_object('n', n), 'ev', '${TOPIC}');
        commit;
      end loop;
    end $$`);
  });

  /** @type {[number | undefined, number, number][]} */
  const CASES = [[10, 21, 30], [1000, 6, 30], [undefined, 6, 30], [-5, 30, 30]];
  for (const [limit, first, last] of CASES) {
    test(`limit ${limit} gives ${first} to ${last}`, async () => {
      const socket = await listen({ broadcast: { replay: { since: 0, limit } } });
      const expected = Array.from({ length: last - first + 1 }, (_, index) => first + index);
      await socket.heartbeat();
      assert.deepEqual(numbers(socket), expected);
      const [{ payload, form }] = socket.framesOf('broadcast');
      assert.deepEqual(payload.meta, { replayed: true, id: payload.payload.id });
      assert.equal(form, 'text');
      const events = socket.frames.map(({ event }) => event);
      assert.equal(events.indexOf('phx_reply') + 1, events.indexOf('broadcast'));
    });
  }

  test('since now gives nothing, and what comes by HTTP is not stored', async () => {
    await post(stage.realtime, { messages: [message(TOPIC, { private: true })] });
    const socket = await listen({ broadcast: { replay: { since: Date.now() + 1_000 } } });
    await socket.heartbeat();
    assert.deepEqual(numbers(socket), []);
  });

  test('a message that was replayed is not delivered again under its id', async () => {
    const id = await sql(`select id from realtime.messages order by inserted_at desc limit 1`);
    const socket = await listen({ broadcast: { replay: { since: 0, limit: 1 } } });
    const again = (/** @type {string} */ given) => message(TOPIC, { private: true, id: given });
    await post(stage.realtime, { messages: [again(id), again('another')] });
    await socket.heartbeat();
    const ids = socket.framesOf('broadcast').map(({ payload }) => payload.meta.id);
    assert.deepEqual(ids, [id, 'another']);
  });

  test('parameters that cannot be read are refused', async () => {
    const socket = await RawSocket.open(stage.realtime, { token: SERVICE });
    for (const replay of ['x', { since: 'yesterday' }, { since: 1, limit: 'all' }]) {
      const { response } = await socket.join(WIRE, { private: true, broadcast: { replay } });
      assert.equal(response.reason, 'UnableToReplayMessages: Replay params are not valid');
    }
  });
});

describe('a server without logical decoding', () => {
  test('does everything else, and says so once', async () => {
    /** @type {string[]} */
    const lines = [];
    const settings = { wal_level: 'replica' };
    const log_ = (/** @type {string} */ line) => lines.push(line);
    const options = { log: log_, replicationReadyMs: 200 };
    const plain = await startWithDatabase(options, settings);
    try {
      const socket = await RawSocket.open(plain.realtime, { token: tokenOf(ALICE) });
      assert.equal((await socket.join(WIRE, { private: true })).status, 'ok');
      await post(plain.realtime, { messages: [message(TOPIC, { private: true })] });
      await socket.nextEvent('broadcast');
      const isTold = (/** @type {string} */ line) =>
        line.startsWith('no messages from the database');
      await waitUntil(() => lines.some(isTold), 'the log to say so');
      await socket.join('realtime:other', { broadcast: { replication_ready: true } });
      await socket.nextEvent('phx_close');
      const { payload } = await socket.nextEvent('system');
      assert.equal(payload.message, 'Replication connection was not established in time');
      assert.equal(lines.filter(isTold).length, 1);
      assert.match(lines.find(isTold) ?? '', /wal_level/);
    } finally {
      await plain.realtime.stop();
      await plain.cluster.stop();
    }
  });
});
