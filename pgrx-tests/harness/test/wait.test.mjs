// @ts-check
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitUntil } from '../wait.mjs';

test('returns the first accepted value', async () => {
  let calls = 0;
  assert.equal(await waitUntil(() => ++calls >= 3 && `call ${calls}`, 'the third call'), 'call 3');
  assert.equal(calls, 3);
});

test('accept decides in place of truthiness', async () => {
  let count = 5;
  const value = await waitUntil(() => (count -= 1), 'none left', { accept: (left) => left === 0 });
  assert.equal(value, 0);
});

test('a failure names what was waited for and the last value seen', async () => {
  const waiting = waitUntil(async () => ({ rows: 2 }), 'three rows', {
    timeoutMs: 60,
    accept: ({ rows }) => rows === 3,
  });
  await assert.rejects(waiting, /waited 60 ms for three rows; last seen: \{ rows: 2 \}/);
});

test('a condition that throws is not yet true, and its error is kept', async () => {
  let calls = 0;
  const settles = () => {
    calls += 1;
    if (calls === 1) throw new Error('not connected');
    return true;
  };
  assert.equal(await waitUntil(settles, 'a connection'), true);

  const failure = new Error('refused');
  const never = waitUntil(() => Promise.reject(failure), 'a connection', { timeoutMs: 40 });
  await assert.rejects(never, (/** @type {Error} */ error) => {
    assert.match(error.message, /last seen: Error: refused/);
    assert.equal(error.cause, failure);
    return true;
  });
});

test('a condition that never answers fails at the deadline', async () => {
  const never = waitUntil(() => new Promise(() => {}), 'an answer', { timeoutMs: 40 });
  await assert.rejects(never, /for an answer; last seen: 'no answer from the condition'/);
});
