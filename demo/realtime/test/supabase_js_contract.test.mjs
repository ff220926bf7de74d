// @ts-check
/**
 * The contract with the unmodified supabase-js:
 *
 * 1. it joins, sends and receives as it does with Realtime, under both versions of the protocol;
 * 2. its errors are those of Realtime: CHANNEL_ERROR with the reason, CLOSED after a close by the
 *    server, "timed out" where no reply comes;
 * 3. it comes back by itself after a restart and a cut connection, and not after a close.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import {
  ALICE, ANON, BOB, SERVICE, connectClient, joinWithClient, message, nowS, post, start,
  startWithDatabase, tokenOf, waitUntil,
} from './support/stage.mjs';

const A = 'notifications:org_a';
const HIDDEN = { private: true };
const DENIED = 'Unauthorized: You do not have permissions to read from this Channel topic: ';

/** @type {Awaited<ReturnType<typeof startWithDatabase>>} */
let stage;
before(async () => (stage = await startWithDatabase()));
after(async () => {
  await stage?.realtime.stop();
  await stage?.cluster.stop();
});

/** @type {import('@supabase/supabase-js').SupabaseClient[]} */
const clients = [];
/** @type {typeof connectClient} */
const connect = (url, token, options) => {
  const client = connectClient(url, token, { reconnectAfterMs: () => 50, ...options });
  clients.push(client);
  return client;
};
/** Servers of one test. @type {import('./support/stage.mjs').Realtime[]} */
const servers = [];
/** @type {typeof start} */
const serve = async (options) => {
  const server = await start(options);
  servers.push(server);
  return server;
};
afterEach(async () => {
  // A client whose server goes first is coming back just when it is told to leave, and the attempt
  // that is under way outlives the telling: it would try for ever.
  for (const client of clients.splice(0)) {
    // Else the timers of its channels go on trying to join.
    for (const channel of client.getChannels()) channel.teardown();
    assert.equal(await client.realtime.disconnect(), 'ok');
  }
  await Promise.all(servers.splice(0).map((server) => server.stop()));
});

const ORGANISATION = { topic: A, private: true, event: 'events' };

for (const vsn of ['1.0.0', '2.0.0']) {
  describe(`protocol ${vsn}`, () => {
    test('a member receives what the relay sends, others do not', async () => {
      const { url } = stage.realtime;
      const alice = connect(url, tokenOf(ALICE), { vsn });
      const bob = connect(url, tokenOf(BOB), { vsn });
      const a = await joinWithClient(alice, A, HIDDEN);
      const b = await joinWithClient(bob, 'notifications:org_b', HIDDEN);
      const stranger = await joinWithClient(bob, A, HIDDEN);
      assert.deepEqual([a.statuses, b.statuses], [['SUBSCRIBED'], ['SUBSCRIBED']]);
      assert.deepEqual(stranger.statuses, [`CHANNEL_ERROR: ${DENIED}${A}`]);

      const payload = { v: 1, org_id: 'a', events: [{ event_id: 'x' }] };
      const messages = [{ ...ORGANISATION, payload, id: 'i' }];
      const path = '/realtime/v1/api/broadcast';
      assert.equal((await post(stage.realtime, { messages }, { path })).status, 202);
      await waitUntil(() => a.received.length > 0, 'the message to arrive');
      assert.deepEqual(a.received, [
        { type: 'broadcast', event: 'events', payload, meta: { id: 'i' } },
      ]);
      const marker = { topic: 'notifications:org_b', private: true, event: 'end', payload: {} };
      await post(stage.realtime, { messages: [marker] });
      await waitUntil(() => b.received.length > 0, 'the marker to arrive');
      assert.deepEqual(b.received.map(({ event }) => event), ['end']);
      assert.deepEqual(stranger.received, []);
    });

    test('every way to send arrives in the same shape', async () => {
      const { url } = stage.realtime;
      const listener = await joinWithClient(connect(url, ANON, { vsn }), 'open');
      const config = { broadcast: { ack: true } };
      const sender = await joinWithClient(connect(url, ANON, { vsn }), 'open', config);
      const say = { type: /** @type {const} */ ('broadcast'), payload: { a: [1, 'é'] } };
      assert.equal(await sender.channel.send({ ...say, event: 'socket' }), 'ok');
      assert.deepEqual(await sender.channel.httpSend('http', say.payload), { success: true });
      const idle = connect(url, ANON, { vsn }).channel('open');
      assert.equal(await idle.send({ ...say, event: 'fallback' }), 'ok');
      await waitUntil(() => listener.received.length === 3, 'three messages');
      assert.deepEqual(listener.received, [
        { ...say, event: 'socket' }, { ...say, event: 'http' }, { ...say, event: 'fallback' },
      ]);
    });

    test('presence', async () => {
      const { url } = stage.realtime;
      const channels = ['ann', 'ben'].map((key) =>
        connect(url, ANON, { vsn }).channel(`present-${vsn}`, { config: { presence: { key } } }));
      for (const channel of channels) {
        channel.on('presence', { event: 'sync' }, () => {});
        await new Promise((resolve) => channel.subscribe((status) => resolve(status)));
      }
      const [ann, ben] = channels;
      assert.equal(await ann.track({ mood: 'good' }), 'ok');
      await waitUntil(() => ben.presenceState().ann?.length === 1, 'Ben to see Ann');
      assert.equal(/** @type {any} */ (ben.presenceState().ann[0]).mood, 'good');
      assert.equal(await ann.untrack(), 'ok');
      await waitUntil(() => !ben.presenceState().ann, 'Ben to see Ann leave');
    });
  });
}

test('postgres_changes are as of a table that is not published', async () => {
  const channel = connect(stage.realtime.url, tokenOf(ALICE)).channel('changes');
  /** @type {any[]} */
  const system = [];
  channel.on('system', {}, (content) => system.push(content));
  const of = { schema: 'public', table: 'memberships' };
  channel.on('postgres_changes', { ...of, event: 'INSERT', filter: 'org=eq.a' }, () => {});
  channel.on('postgres_changes', { ...of, event: 'DELETE' }, () => {});
  const status = await new Promise((resolve) => channel.subscribe(resolve));
  assert.equal(status, 'SUBSCRIBED');
  await waitUntil(() => system.length > 0, 'the reason');
  assert.deepEqual(system, [{
    extension: 'postgres_changes', status: 'error', channel: 'changes',
    message: 'Unable to subscribe to changes with given parameters. Please check Realtime is ' +
      'enabled for the given connect parameters: [event: INSERT, schema: public, ' +
      'table: memberships, filters: [org=eq.a]]',
  }]);
});

describe('sending from SQL', () => {
  test('realtime.send and bytes arrive', async () => {
    const client = connect(stage.realtime.url, tokenOf(ALICE));
    const { received } = await joinWithClient(client, A, {
      ...HIDDEN, broadcast: { replication_ready: true },
    });
    await waitUntil(async () => {
      await stage.cluster.psql(`select realtime.send('{"n":1}', 'ev', '${A}')`);
      return received.length > 0;
    }, 'a row to arrive');
    const [{ payload, meta }] = received;
    assert.deepEqual(payload, { n: 1, id: meta.id });
    await stage.cluster.psql(`select realtime.send_binary('\\x0102', 'bytes', '${A}')`);
    const bytes = await waitUntil(
      () => received.find(({ event }) => event === 'bytes'), 'the bytes to arrive');
    assert.deepEqual([...new Uint8Array(bytes.payload)], [1, 2]);
  });

  test('replay comes with the join, marked', async () => {
    await stage.cluster.psql(`delete from realtime.messages`);
    await stage.cluster.psql(`select realtime.send('{"n":1}', 'ev', '${A}')`);
    const client = connect(stage.realtime.url, tokenOf(ALICE));
    const replay = { since: Date.now() - 60_000, limit: 10 };
    const { received } = await joinWithClient(client, A, { ...HIDDEN, broadcast: { replay } });
    await waitUntil(() => received.length > 0, 'the replayed message');
    assert.equal(received[0].payload.n, 1);
    assert.equal(received[0].meta.replayed, true);
  });
});

describe('refusals', () => {
  test('httpSend tells that it may not', async () => {
    const channel = connect(stage.realtime.url, tokenOf(ALICE)).channel(A, { config: HIDDEN });
    await assert.rejects(channel.httpSend('ev', { a: 1 }), /^Error: Unauthorized$/);
  });

  test('a push without permission and with ack is timed out', async () => {
    const client = connect(stage.realtime.url, tokenOf(ALICE));
    const config = { ...HIDDEN, broadcast: { ack: true } };
    const { channel } = await joinWithClient(client, A, config);
    const push = channel.send({ type: 'broadcast', event: 'x', payload: {} }, { timeout: 200 });
    assert.equal(await push, 'timed out');
  });

  test('an expired token closes the channel for good', async () => {
    const client = connect(stage.realtime.url, tokenOf(ALICE, { exp: nowS() + 2 }));
    const { statuses, system, received } = await joinWithClient(client, A, HIDDEN);
    await waitUntil(() => statuses.includes('CLOSED'), 'the channel to be closed');
    assert.deepEqual(statuses, ['SUBSCRIBED', 'CLOSED']);
    assert.match(system[0].message, /^Token has expired/);
    await post(stage.realtime, { messages: [{ ...ORGANISATION, payload: {} }] });
    assert.deepEqual(received, []);
    assert.equal(stage.realtime.stats().channels, 0);
  });

  test('an overrun closes the channel, which is not joined again', async () => {
    let now = 0;
    const limits = { eventsPerSecond: 5 };
    const realtime = await serve({ clock: () => now, limits });
    const [one, two] = [connect(realtime.url, ANON), connect(realtime.url, ANON)];
    const listener = await joinWithClient(one, 'flood');
    const sender = await joinWithClient(two, 'flood');
    for (let n = 0; n < 40; n += 1) {
      await sender.channel.send({ type: 'broadcast', event: 'x', payload: { n } });
    }
    await waitUntil(() => listener.received.length === 40, 'the flood to arrive');
    now += 5_000;
    await sender.channel.send({ type: 'broadcast', event: 'x', payload: {} });
    await waitUntil(() => listener.statuses.includes('CLOSED'), 'the listener to be closed');
    assert.equal(listener.system[0].message, 'Too many messages per second');
    assert.equal(listener.received.length, 41);
    const { status } = await post(realtime, { messages: [message('flood')] });
    assert.equal(status, 429);
    now += 60_000;
    assert.equal((await post(realtime, { messages: [message('flood')] })).status, 202);
    await waitUntil(() => sender.received.length === 1, 'the message to reach who is left');
    assert.equal(listener.received.length, 41);
    assert.equal(realtime.stats().channels, 1);
  });
});

describe('coming back', () => {
  /** @param {(realtime: import('./support/stage.mjs').Realtime) => Promise<any>} interrupt */
  async function survives(interrupt) {
    let realtime = await serve({ databaseUrl: stage.cluster.url() });
    const { statuses, received } = await joinWithClient(
      connect(realtime.url, tokenOf(ALICE)), A, HIDDEN);
    realtime = (await interrupt(realtime)) ?? realtime;
    await waitUntil(() => statuses.filter((s) => s === 'SUBSCRIBED').length === 2, 'the rejoin');
    await post(realtime, { messages: [{ ...ORGANISATION, payload: { n: 2 } }] });
    await waitUntil(() => received.length > 0, 'a message after it');
    assert.deepEqual(received.map(({ payload }) => payload.n), [2]);
    return statuses;
  }

  test('after a restart, without what was sent meanwhile', async () => {
    const statuses = await survives(async (realtime) => {
      const { port } = realtime;
      await realtime.stop();
      await assert.rejects(post(realtime, { messages: [message(A)] }));
      return serve({ databaseUrl: stage.cluster.url(), port });
    });
    assert.match(statuses[1], /^CHANNEL_ERROR: .*socket closed: 1012/);
  });

  for (const how of /** @type {const} */ (['close', 'drop'])) {
    test(`after the server ${how}s the socket`, async () => {
      const statuses = await survives(async (realtime) => realtime.disconnectAll(how));
      assert.match(statuses[1], /^CHANNEL_ERROR/);
    });
  }
});

test('the key of the service bypasses the policies', async () => {
  const client = connect(stage.realtime.url, SERVICE);
  const { statuses } = await joinWithClient(client, 'anything', HIDDEN);
  assert.deepEqual(statuses, ['SUBSCRIBED']);
});
