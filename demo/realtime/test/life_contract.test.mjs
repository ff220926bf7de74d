// @ts-check
/**
 * The contract of the server's life:
 *
 * 1. it stops at once: sockets are told and closed with 1012, its port is free, and it may be
 *    called twice;
 * 2. as a program it says one line when it is ready, and ends by itself on SIGTERM;
 * 3. options that it does not know are refused;
 * 4. outages on purpose: silence, one status for everything, sockets that are cut.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { describe, test } from 'node:test';
import { completeOptions } from '../options.mjs';
import { RawSocket } from './support/raw_socket.mjs';
import { SECRET, message, post, start, waitUntil } from './support/stage.mjs';

const MAIN = fileURLToPath(new URL('../main.mjs', import.meta.url));
const batch = { messages: [message('room')] };

describe('stopping', () => {
  test('tells the sockets, closes them with 1012 and frees the port', async () => {
    const realtime = await start();
    const socket = await RawSocket.open(realtime);
    await socket.join('realtime:room');
    await post(realtime, batch); // Leaves a kept-alive connection behind.
    const startedAt = performance.now();
    await Promise.all([realtime.stop(), realtime.stop()]);
    // Well before those are dropped who do not answer a close.
    assert.ok(performance.now() - startedAt < 1_000, `${performance.now() - startedAt} ms`);
    assert.equal(await socket.closed(), 1012);
    assert.deepEqual(socket.framesOf('system')[0].payload, {
      extension: 'system', status: 'ok', message: 'Server requested disconnect', channel: 'room',
    });
    await assert.rejects(post(realtime, batch), /fetch failed/);
    const again = await start({ port: realtime.port });
    assert.equal((await post(again, batch)).status, 202);
    await again.stop();
  });

  test('does not wait for who does not answer the close', async () => {
    const realtime = await start();
    const socket = await RawSocket.open(realtime);
    realtime.pause();
    socket.push('phoenix', 'heartbeat', {});
    const unanswered = post(realtime, batch).catch(() => 'gone');
    await waitUntil(() => realtime.stats().sockets === 1, 'the socket to be there');
    await realtime.stop();
    await unanswered;
    await socket.closed();
  });

  test('a port that is taken is an error, and nothing stays behind', async () => {
    const realtime = await start();
    await assert.rejects(start({ port: realtime.port }), /EADDRINUSE/);
    await realtime.stop();
  });
});

describe('as a program', () => {
  test('it is ready, serves, and ends on SIGTERM', async () => {
    const parameters = ['--port', '0', '--jwt-secret', SECRET, '--events-per-second', '3'];
    const child = spawn(process.execPath, [MAIN, ...parameters],
      { stdio: ['ignore', 'pipe', 'pipe'] });
    const exit = once(child, 'exit');
    /** @type {string[]} */
    const lines = [];
    const output = createInterface({ input: child.stdout }).on('line', (line) => lines.push(line));
    try {
      await once(output, 'line');
      const ready = /^Realtime stand-in ready at (http:\/\/127\.0\.0\.1:\d+)$/;
      const [, url] = ready.exec(lines[0]) ?? [];
      const realtime = /** @type {any} */ ({ url });
      const { status, headers } = await post(realtime, batch);
      assert.deepEqual([status, headers.get('x-rate-limit')], [202, '3']);
      const socket = await RawSocket.open(realtime);
      child.kill('SIGTERM');
      assert.deepEqual(await exit, [0, null]);
      assert.equal(await socket.closed(), 1012);
      assert.equal(lines.length, 1);
    } finally {
      child.kill('SIGKILL');
    }
  });

  test('without a secret it says how it is used', async () => {
    const env = { ...process.env, JWT_SECRET: '' };
    const child = spawn(process.execPath, [MAIN], { env, stdio: ['ignore', 'ignore', 'pipe'] });
    let text = '';
    child.stderr.on('data', (chunk) => (text += chunk));
    assert.deepEqual(await once(child, 'close'), [2, null]);
    assert.match(text, /^usage: /);
  });
});

describe('options', () => {
  test('are those of a self-hosted Realtime where nothing is said', () => {
    const { limits, joinErrorDelayMs, handshakeErrorDelayMs, socketIdleMs, tokenCheckMs, ...rest } =
      completeOptions({ jwtSecret: SECRET });
    assert.deepEqual(limits, {
      eventsPerSecond: 100, payloadKb: 3000, channelsPerSocket: 100, sockets: 200,
      joinsPerSecond: 100, presenceEventsPerSecond: 1000, presenceCallsPerWindow: 5,
      presenceWindowMs: 30_000,
    });
    assert.deepEqual([joinErrorDelayMs, handshakeErrorDelayMs, socketIdleMs, tokenCheckMs],
      [5_000, 2_000, 60_000, 300_000]);
    assert.deepEqual([rest.tenantId, rest.presenceDiffMs], ['realtime-dev', 1_500]);
  });

  test('that are unknown or missing are refused', async () => {
    await assert.rejects(start(/** @type {any} */ ({ colour: 'red' })), /unknown option: colour/);
    await assert.rejects(start(/** @type {any} */ ({ limits: { speed: 1 } })), /unknown limit/);
    await assert.rejects(start({ jwtSecret: '' }), /jwtSecret is missing/);
    await assert.rejects(start({ databaseUrl: 'postgresql://127.0.0.1:1/x' }), /ECONNREFUSED/);
  });
});

describe('outages', () => {
  test('silence holds answers back until it ends', async () => {
    const realtime = await start();
    const socket = await RawSocket.open(realtime);
    realtime.pause();
    let isAnswered = false;
    const answer = post(realtime, batch).then(({ status }) => ((isAnswered = true), status));
    const beat = socket.heartbeat().then(() => (isAnswered = true));
    const quick = await fetch(`${realtime.url}/healthcheck`, { signal: AbortSignal.timeout(150) })
      .catch(({ name }) => name);
    assert.equal(quick, 'TimeoutError');
    assert.equal(isAnswered, false);
    realtime.resume();
    assert.equal(await answer, 202);
    await beat;
    await realtime.stop();
  });

  test('one status for everything, until it is taken back', async () => {
    const realtime = await start();
    realtime.failWith(503);
    assert.equal((await post(realtime, batch)).status, 503);
    await assert.rejects(RawSocket.open(realtime), /503/);
    assert.equal(realtime.stats().messages, 0);
    realtime.failWith(null);
    assert.equal((await post(realtime, batch)).status, 202);
    assert.deepEqual(realtime.stats(), {
      requests: 2, refusals: 1, messages: 1, deliveries: 0, sockets: 0, channels: 0,
    });
    await realtime.stop();
  });

  test('sockets are closed with 1001 or cut', async () => {
    const realtime = await start();
    const closed = await RawSocket.open(realtime);
    realtime.disconnectAll();
    assert.equal(await closed.closed(), 1001);
    const cut = await RawSocket.open(realtime);
    realtime.disconnectAll('drop');
    assert.equal(await cut.closed(), 1006);
    await realtime.stop();
  });
});
