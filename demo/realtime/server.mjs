// @ts-check
/**
 * A stand-in for Supabase Realtime, for machines that have none: its HTTP and websocket protocol
 * for broadcast and presence, with private channels decided by the policies in Postgres.
 *
 * It is one node with one tenant, for the demo and for tests. There is no `postgres_changes`, no
 * long polling, no administration by HTTP, and no key but the shared secret. README.md has
 * the list.
 */
import { once } from 'node:events';
import { createServer } from 'node:http';
import { Authorization } from './authorization.mjs';
import { Database } from './database.mjs';
import { CLOSE_GOING_AWAY, CLOSE_SERVICE_RESTART } from './frames.mjs';
import { acceptSockets } from './handshake.mjs';
import { createHandler } from './http.mjs';
import { completeOptions } from './options.mjs';
import { Outage } from './outage.mjs';
import { Presence } from './presence.mjs';
import { Tail } from './tail.mjs';
import { Tenant } from './tenant.mjs';

/** How long sockets have to answer a close before they are dropped. */
const CLOSE_TIMEOUT_MS = 1_000;

/**
 * @typedef {object} Realtime
 * @property {string} url what supabase-js takes
 * @property {number} port
 * @property {Readonly<import('./options.mjs').Limits>} limits
 * @property {(changes: Partial<import('./options.mjs').Limits>) => void} setLimits counts anew
 * @property {(suspended: boolean) => void} suspend the tenant
 * @property {() => { requests: number, refusals: number, messages: number, deliveries: number,
 *   sockets: number, channels: number }} stats of the tenant since the start
 * @property {() => void} pause takes requests and frames and answers none, until resume()
 * @property {() => void} resume
 * @property {(status: number | null) => void} failWith answers every request so, until null
 * @property {(how?: 'close' | 'drop') => void} disconnectAll sockets; `drop` without a close frame
 * @property {() => Promise<void>} stop tells the sockets that it restarts, and ends
 */

/**
 * Starts the server; it answers when the promise resolves.
 *
 * @param {Parameters<typeof completeOptions>[0]} given
 * @returns {Promise<Realtime>}
 */
export async function startRealtime(given) {
  const options = completeOptions(given);
  const tenant = new Tenant(options);
  const database = await openDatabase(options);
  const services = {
    tenant,
    presence: new Presence(tenant),
    authorization: new Authorization(database),
    database,
    tail: database && new Tail(database.url, tenant, options),
    outage: new Outage(),
    options,
    state: { stopping: false },
  };
  const server = createServer({ maxHeaderSize: 64 * 1024 }, createHandler(services));
  const sockets = acceptSockets(server, services);
  try {
    server.listen(options.port, options.host);
    await once(server, 'listening');
  } catch (error) {
    await database?.close();
    throw error;
  }
  const sweeper = setInterval(
    () => sockets.forEach((socket) => socket.channels.size === 0 && socket.drop()),
    options.socketWithoutChannelMs,
  ).unref();
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());

  /** @type {Promise<void> | undefined} */
  let stopped;
  return {
    url: `http://${options.host.includes(':') ? `[${options.host}]` : options.host}:${port}`,
    port,
    get limits() {
      return tenant.limits;
    },
    setLimits: (changes) => tenant.setLimits(changes),
    suspend: (suspended) => (tenant.suspended = suspended),
    stats: () => ({ ...tenant.totals, sockets: sockets.size, channels: tenant.channelCount }),
    pause: () => services.outage.begin(),
    resume: () => services.outage.end(),
    failWith: (status) => (services.outage.status = status),
    disconnectAll: (how = 'close') => {
      for (const socket of sockets) how === 'drop' ? socket.drop() : socket.close(CLOSE_GOING_AWAY);
    },
    stop: () => (stopped ??= stop(server, sockets, services, sweeper)),
  };
}

/** @param {import('./options.mjs').Options} options */
async function openDatabase(options) {
  const { databaseUrl } = options;
  if (!databaseUrl) return null;
  const database = new Database({ ...options, databaseUrl });
  try {
    await database.prepare();
    return database;
  } catch (error) {
    await database.close();
    throw error;
  }
}

/**
 * @param {import('node:http').Server} server
 * @param {Set<import('./socket.mjs').Socket>} sockets
 * @param {import('./socket.mjs').Services} services
 * @param {NodeJS.Timeout} sweeper
 */
async function stop(server, sockets, { state, outage, presence, tail, database }, sweeper) {
  state.stopping = true;
  clearInterval(sweeper);
  outage.end();
  const closed = once(server, 'close');
  server.close();
  for (const socket of sockets) {
    for (const channel of socket.channels.values()) {
      channel.pushSystem('ok', 'Server requested disconnect');
    }
    socket.close(CLOSE_SERVICE_RESTART);
  }
  const dropAll = setTimeout(() => {
    for (const socket of sockets) socket.drop();
    server.closeAllConnections();
  }, CLOSE_TIMEOUT_MS);
  await closed;
  clearTimeout(dropAll);
  presence.close();
  await tail?.stop();
  await database?.close();
}
