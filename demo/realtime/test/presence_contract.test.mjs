// @ts-check
/**
 * The contract of presence:
 *
 * 1. with presence enabled a join is followed by the state; tracking enables it;
 * 2. changes reach all on the topic as one gathered diff; a channel that ends leaves;
 * 3. a shared key has many metas, an update names the one before;
 * 4. too many calls close the channel, a payload that is no object is refused.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { RawSocket } from './support/raw_socket.mjs';
import { start } from './support/stage.mjs';

/** @type {import('./support/stage.mjs').Realtime} */
let realtime;
before(async () => (realtime = await start({ presenceDiffMs: 30 })));
after(() => realtime?.stop());

/**
 * @param {string} key
 * @param {{ topic: string, enabled?: boolean }} options
 */
async function join(key, { topic, enabled = true }) {
  const socket = await RawSocket.open(realtime);
  await socket.join(topic, { presence: { key, enabled } });
  const call = async (/** @type {string} */ event, /** @type {unknown} */ payload = {}) =>
    (await socket.replyTo(socket.push(topic, 'presence', { type: 'presence', event, payload })))
      .payload;
  const diff = (/** @type {(diff: any) => unknown} */ fits, /** @type {string} */ description) =>
    socket.next(({ event, payload }) => event === 'presence_diff' && fits(payload), description);
  return { socket, call, diff };
}

const OK = { status: 'ok', response: {} };

test('state, joins and leaves', async () => {
  const topic = 'realtime:state';
  const ann = await join('ann', { topic });
  assert.deepEqual((await ann.socket.nextEvent('presence_state')).payload, {});
  assert.deepEqual(await ann.call('track', { mood: 'good' }), OK);
  const { payload } = await ann.diff(({ joins }) => joins.ann, 'a diff with Ann');
  const [meta] = payload.joins.ann.metas;
  assert.deepEqual([meta.mood, payload.leaves], ['good', {}]);

  const ben = await join('ben', { topic });
  const state = await ben.socket.nextEvent('presence_state');
  assert.deepEqual(state.payload, { ann: { metas: [meta] } });
  assert.deepEqual(await ann.call('UNTRACK'), OK);
  const left = await ben.diff(({ leaves }) => leaves.ann, 'a diff without Ann');
  assert.deepEqual(left.payload, { joins: {}, leaves: { ann: { metas: [meta] } } });
});

test('an update names the meta before, the same payload is no change', async () => {
  const ann = await join('ann', { topic: 'realtime:update' });
  await ann.call('track', { n: 1 });
  await ann.diff(({ joins }) => joins.ann, 'the first');
  const [before_] = ann.socket.framesOf('presence_diff')[0].payload.joins.ann.metas;
  await ann.call('track', { n: 1 });
  await ann.call('track', { n: 2 });
  const { payload } = await ann.diff(({ leaves }) => leaves.ann, 'the update');
  assert.deepEqual(payload.leaves.ann.metas, [before_]);
  const [after_] = payload.joins.ann.metas;
  assert.deepEqual([after_.n, after_.phx_ref_prev], [2, before_.phx_ref]);
  assert.equal(ann.socket.framesOf('presence_diff').length, 2);
});

test('a key may be shared, and a socket that ends leaves', async () => {
  const topic = 'realtime:shared';
  const [one, two] = [await join('ann', { topic }), await join('ann', { topic })];
  await one.call('track', { tab: 1 });
  await two.call('track', { tab: 2 });
  const watcher = await join('eve', { topic });
  const { payload } = await watcher.socket.nextEvent('presence_state');
  assert.deepEqual(payload.ann.metas.map((/** @type {any} */ meta) => meta.tab), [1, 2]);
  one.socket.close();
  const left = await watcher.diff(({ leaves }) => leaves.ann, 'a diff without the first tab');
  assert.equal(left.payload.leaves.ann.metas[0].tab, 1);
});

test('tracking enables it, and without a key there is one', async () => {
  const ann = await join('', { topic: 'realtime:late', enabled: false });
  await ann.socket.heartbeat();
  assert.equal(ann.socket.framesOf('presence_state').length, 0);
  assert.deepEqual(await ann.call('track', {}), OK);
  await ann.socket.nextEvent('presence_state');
  const { payload } = await ann.diff(({ joins }) => Object.keys(joins).length, 'a diff');
  assert.match(Object.keys(payload.joins)[0], /^[0-9a-f-]{36}$/);
});

test('a payload that is no object and an unknown event are refused', async () => {
  const ann = await join('ann', { topic: 'realtime:odd' });
  const reason = 'Presence track payload must be a map';
  assert.deepEqual(await ann.call('track', [1]), { status: 'error', response: { reason } });
  assert.equal((await ann.call('dance')).status, 'error');
});

test('the sixth call within the window closes the channel', async () => {
  const ann = await join('ann', { topic: 'realtime:many' });
  for (let n = 0; n < 5; n += 1) assert.deepEqual(await ann.call('track', { n }), OK);
  ann.socket.push('realtime:many', 'presence', { event: 'track', payload: { n: 5 } });
  await ann.socket.nextEvent('phx_close');
  const [system] = ann.socket.framesOf('system');
  assert.equal(system.payload.message, 'Client presence rate limit exceeded');
});
