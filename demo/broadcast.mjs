// @ts-check
/**
 * The Realtime that the demo broadcasts through: the stand-in of this folder, which can be stopped
 * and started to see what an outage does, or somebody's own, which is left alone.
 */
import { startRealtime } from './realtime/server.mjs';

/**
 * @typedef {object} Realtime
 * @property {string} url what supabase-js takes
 * @property {boolean} switchable whether start() and stop() may be used
 * @property {boolean} running
 * @property {() => Promise<void>} start
 * @property {() => Promise<void>} stop
 */

/** Where the batch route lives under the address that supabase-js takes. */
export const sinkUrl = (/** @type {string} */ url) => `${url.replace(/\/$/, '')}/realtime/v1`;

/**
 * @param {{ databaseUrl: string, jwtSecret: string }} options
 * @returns {Promise<Realtime>}
 */
export async function startStandIn(options) {
  let server = await startRealtime(options);
  const { url, port } = server;
  let running = true;
  // One switch at a time: two people may press the button at once.
  let turn = Promise.resolve();
  const inTurn = (/** @type {() => Promise<void>} */ work) => {
    turn = turn.then(work, work);
    return turn;
  };
  return {
    url,
    switchable: true,
    get running() {
      return running;
    },
    start: () =>
      inTurn(async () => {
        if (running) return;
        server = await startRealtime({ ...options, port });
        running = true;
      }),
    stop: () =>
      inTurn(async () => {
        if (!running) return;
        running = false;
        await server.stop();
      }),
  };
}

/**
 * @param {string} url
 * @returns {Realtime}
 */
export function useRealtime(url) {
  const leave = async () => {};
  return {
    url: url.replace(/\/$/, ''),
    switchable: false,
    running: true,
    start: leave,
    stop: leave,
  };
}
