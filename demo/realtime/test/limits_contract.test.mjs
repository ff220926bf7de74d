// @ts-check
/**
 * The contract of the limits:
 *
 * 1. a rate is the average over a minute of buckets of 5 s, seen when a bucket closes;
 * 2. a batch must fit into what the average leaves of the limit, so one above the limit never does;
 * 3. each message counts once, and once more for each channel that receives it;
 * 4. an overrun refuses HTTP for as long as its bucket weighs, and closes channels that receive;
 * 5. requests, joins, channels and sockets have limits of their own;
 * 6. each limit can be changed and taken off while the server runs.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { payloadSize } from '../payload_size.mjs';
import { RateCounter } from '../rate_counter.mjs';
import { RawSocket } from './support/raw_socket.mjs';
import { message, post, start, waitUntil } from './support/stage.mjs';

/** A clock that stands still unless it is moved. */
function stillClock() {
  let now = 0;
  const clock = () => now;
  return Object.assign(clock, { passS: (/** @type {number} */ s) => (now += s * 1000) });
}

const messages = (/** @type {number} */ count, topic = 'room') =>
  ({ messages: Array.from({ length: count }, () => message(topic)) });

const SINGLE = { path: '/api/broadcast/room/events/ev' };
const REDUCE = { message: 'Too many messages to broadcast, please reduce the batch size' };
const EXCEEDED = { message: 'You have exceeded your rate limit' };

/**
 * @param {Partial<import('../options.mjs').Limits>} limits
 * @param {(stage: { realtime: import('./support/stage.mjs').Realtime,
 *   clock: ReturnType<typeof stillClock> }) => Promise<void>} work
 */
async function withLimits(limits, work) {
  const clock = stillClock();
  const realtime = await start({ clock, limits });
  try {
    await work({ realtime, clock });
  } finally {
    await realtime.stop();
  }
}

describe('a rate', () => {
  const counterOf = (/** @type {() => number} */ clock) =>
    new RateCounter({ clock, bucketMs: 5_000, bucketsMax: 12 });

  test('is seen when its bucket closes, and falls as buckets come', () => {
    const clock = stillClock();
    const counter = counterOf(clock);
    counter.add(600);
    clock.passS(4.9);
    assert.equal(counter.average, 0);
    clock.passS(0.1);
    assert.equal(counter.average, 600 / 2 / 5);
    clock.passS(5);
    assert.equal(counter.average, 600 / 3 / 5);
    clock.passS(45);
    assert.equal(counter.average, 600 / 12 / 5);
    clock.passS(9.9);
    assert.equal(counter.average, 10);
    clock.passS(0.1);
    assert.equal(counter.average, 0);
  });

  test('starts afresh after five idle minutes', () => {
    const clock = stillClock();
    const counter = counterOf(clock);
    clock.passS(301);
    counter.add(100);
    clock.passS(5);
    assert.equal(counter.average, 10);
  });
});

test('a payload is measured as an Erlang term', () => {
  assert.equal(payloadSize({}), 6);
  assert.equal(payloadSize({ a: 'é' }), 6 + 6 + 7);
  assert.equal(payloadSize([1, 256, -1, 2 ** 40, 1.5]), 1 + 6 + 2 + 5 + 5 + 9 + 9);
  assert.equal(payloadSize([true, false, null, []]), 1 + 6 + 6 + 7 + 5 + 1);
});

describe('events', () => {
  test('a batch above the limit never passes, whatever the load', () =>
    withLimits({}, async ({ realtime }) => {
      const { status, body } = await post(realtime, messages(101));
      assert.deepEqual([status, body], [429, REDUCE]);
      assert.equal((await post(realtime, messages(100))).status, 202);
      assert.equal(realtime.stats().messages, 100);
    }));

  test('a batch must fit into what the average leaves', () =>
    withLimits({}, async ({ realtime, clock }) => {
      await post(realtime, messages(100));
      clock.passS(5); // 100 in two buckets: 10 a second.
      assert.deepEqual((await post(realtime, messages(91))).body, REDUCE);
      assert.equal((await post(realtime, messages(90))).status, 202);
    }));

  test('60 every 2 s pass for as long as one likes', () =>
    withLimits({}, async ({ realtime, clock }) => {
      for (let turn = 0; turn < 60; turn += 1) {
        assert.equal((await post(realtime, messages(60))).status, 202, `turn ${turn}`);
        clock.passS(2);
      }
    }));

  test('an overrun is refused until its bucket has left', () =>
    withLimits({}, async ({ realtime, clock }) => {
      for (let turn = 0; turn < 130; turn += 1) await post(realtime, messages(100));
      clock.passS(5);
      for (let passed = 5; passed < 65; passed += 5) {
        assert.deepEqual((await post(realtime, messages(1))).body, EXCEEDED, `after ${passed} s`);
        assert.deepEqual((await post(realtime, { a: 1 }, SINGLE)).body, EXCEEDED);
        clock.passS(5);
      }
      assert.equal((await post(realtime, messages(1))).status, 202);
      assert.equal((await post(realtime, { a: 1 }, SINGLE)).status, 202);
    }));

  test('at the limit a single message is refused, and a batch as too large', () =>
    withLimits({ eventsPerSecond: 10 }, async ({ realtime, clock }) => {
      for (let turn = 0; turn < 10; turn += 1) await post(realtime, messages(10));
      clock.passS(5);
      assert.deepEqual((await post(realtime, { a: 1 }, SINGLE)).body, EXCEEDED);
      assert.deepEqual((await post(realtime, messages(1))).body, REDUCE);
    }));

  test('10 messages to 10 channels are 110', () =>
    withLimits({}, async ({ realtime, clock }) => {
      const sockets = await Promise.all(Array.from({ length: 10 }, () => RawSocket.open(realtime)));
      for (const socket of sockets) await socket.join('realtime:room');
      await post(realtime, messages(10));
      clock.passS(5); // 110 in two buckets: 11 a second, which leaves 89.
      assert.deepEqual((await post(realtime, messages(90))).body, REDUCE);
      assert.equal((await post(realtime, messages(89, 'nobody'))).status, 202);
    }));

  test('channels that receive in an overrun are closed, and can be joined again', () =>
    withLimits({ eventsPerSecond: 10 }, async ({ realtime, clock }) => {
      const [sender, listener] = [await RawSocket.open(realtime), await RawSocket.open(realtime)];
      const { ref } = await listener.join('realtime:room');
      await sender.join('realtime:room', { broadcast: { ack: true } });
      for (let turn = 0; turn < 10; turn += 1) await post(realtime, messages(10, 'nobody'));
      clock.passS(5);
      const say = { type: 'broadcast', event: 'say', payload: {} };
      const { payload } = await sender.replyTo(sender.push('realtime:room', 'broadcast', say));
      assert.equal(payload.status, 'ok');

      const close = await listener.nextEvent('phx_close');
      assert.equal(close.ref, ref);
      const [system] = listener.framesOf('system');
      assert.deepEqual(system.payload, {
        extension: 'system', status: 'error', channel: 'room',
        message: 'Too many messages per second',
      });
      assert.equal(listener.framesOf('broadcast').length, 1);
      assert.equal(sender.framesOf('phx_close').length, 0);
      assert.equal((await listener.join('realtime:room')).status, 'ok');
    }));
});

describe('other limits', () => {
  test('requests a second, which the headers show', () =>
    withLimits({ eventsPerSecond: 5 }, async ({ realtime, clock }) => {
      for (let turn = 0; turn < 10; turn += 1) {
        const { status, headers } = await post(realtime, {});
        assert.equal(status, 422);
        assert.equal(headers.get('x-rate-rolling'), '0');
        assert.equal(headers.get('x-rate-limit-remaining'), '5');
      }
      clock.passS(1); // 10 in two buckets of a second.
      const { status, body, headers } = await post(realtime, messages(1), { token: 'bad' });
      assert.deepEqual([status, body], [429, { message: 'Too many requests' }]);
      assert.equal(headers.get('x-rate-rolling'), '5');
      assert.equal(headers.get('x-rate-limit'), '5');
      assert.equal(headers.get('x-rate-limit-remaining'), '0');
      assert.equal(headers.get('retry-after'), null);
    }));

  test('joins a second, which is told and drops the socket', () =>
    withLimits({ joinsPerSecond: 3 }, async ({ realtime, clock }) => {
      const socket = await RawSocket.open(realtime);
      for (let turn = 0; turn < 6; turn += 1) await socket.join(`realtime:${turn}`);
      clock.passS(1);
      const { response } = await socket.join('realtime:more');
      assert.equal(response.reason, 'ClientJoinRateLimitReached: Too many joins per second');
      assert.equal(await socket.closed(), 1001);
      await assert.rejects(RawSocket.open(realtime), /429/);
    }));

  test('channels of a socket', () =>
    withLimits({ channelsPerSocket: 2 }, async ({ realtime }) => {
      const socket = await RawSocket.open(realtime);
      for (const topic of ['realtime:1', 'realtime:2']) await socket.join(topic);
      const { response } = await socket.join('realtime:3');
      assert.equal(response.reason, 'ChannelRateLimitReached: Too many channels');
      await socket.replyTo(socket.push('realtime:1', 'phx_leave', {}));
      assert.equal((await socket.join('realtime:3')).status, 'ok');
    }));

  test('sockets with a channel', () =>
    withLimits({ sockets: 1 }, async ({ realtime }) => {
      const [first, second] = [await RawSocket.open(realtime), await RawSocket.open(realtime)];
      await first.join('realtime:1');
      const { response } = await second.join('realtime:1');
      assert.equal(response.reason, 'ConnectionRateLimitReached: Too many connected users');
      await assert.rejects(RawSocket.open(realtime), /429/);
      first.close();
      await waitUntil(() => realtime.stats().channels === 0, 'the first to be gone');
      assert.equal((await second.join('realtime:1')).status, 'ok');
    }));

  test('limits can be changed and taken off while it runs', () =>
    withLimits({}, async ({ realtime }) => {
      realtime.setLimits({ eventsPerSecond: null });
      const { status, headers } = await post(realtime, messages(10_000));
      assert.equal(status, 202);
      assert.equal(headers.get('x-rate-limit'), null);
      realtime.setLimits({ eventsPerSecond: 2, payloadKb: 1 });
      assert.deepEqual((await post(realtime, messages(3))).body, REDUCE);
      const large = { messages: [message('room', { payload: { a: 'x'.repeat(1_500) } })] };
      assert.equal((await post(realtime, large)).status, 422);
      assert.throws(() => realtime.setLimits(/** @type {any} */ ({ events: 1 })), /unknown limit/);
      assert.equal(realtime.limits.eventsPerSecond, 2);
    }));
});
