// @ts-check
/**
 * Waiting for a described condition, in place of every sleep in the tests.
 *
 * A wait that fails says what it waited for, how long, and the last value it saw, because "timed
 * out" alone sends the reader back to the start.
 */
import { inspect } from 'node:util';
import { setTimeout as pause } from 'node:timers/promises';

const TIMEOUT_MS = 10_000;
const INTERVAL_MS = 20;

/**
 * Calls `condition` until it gives an accepted value (a truthy one unless `accept` decides), and
 * returns that value. A condition that throws counts as not yet true; its error is the last value
 * seen.
 *
 * @template T
 * @param {() => T | Promise<T>} condition
 * @param {string} description what is waited for, as it is to stand in the error
 * @param {object} [options]
 * @param {number} [options.timeoutMs]
 * @param {number} [options.intervalMs] the pause between two calls
 * @param {(value: T) => unknown} [options.accept] decides whether a value is the one
 * @returns {Promise<T>}
 */
export async function waitUntil(condition, description, options = {}) {
  const { timeoutMs = TIMEOUT_MS, intervalMs = INTERVAL_MS, accept = Boolean } = options;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const seen = await look(condition, deadline);
    if ('value' in seen && accept(seen.value)) return seen.value;
    if (performance.now() >= deadline) {
      const last = inspect('value' in seen ? seen.value : seen.error, { depth: 4 });
      throw new Error(`waited ${timeoutMs} ms for ${description}; last seen: ${last}`, {
        cause: 'error' in seen ? seen.error : undefined,
      });
    }
    await pause(intervalMs);
  }
}

/**
 * One call of the condition. It is given up at the deadline, so that a condition that hangs fails
 * like any other.
 *
 * @template T
 * @param {() => T | Promise<T>} condition
 * @param {number} deadline
 * @returns {Promise<{ value: T } | { error: unknown }>}
 */
async function look(condition, deadline) {
  const unanswered = new AbortController();
  const remainingMs = Math.max(1, deadline - performance.now());
  const silence = { error: 'no answer from the condition' };
  const giveUp = pause(remainingMs, silence, { signal: unanswered.signal }).catch(() => silence);
  try {
    const answer = Promise.resolve().then(condition).then((value) => ({ value }));
    return await Promise.race([answer, giveUp]);
  } catch (error) {
    return { error };
  } finally {
    unanswered.abort();
  }
}
